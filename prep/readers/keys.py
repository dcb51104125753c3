"""What stands under a key on each line, as an Arrow array: of one type, or of several."""

import math
from typing import Any

import pyarrow as pa

from prep.readers.documents import MISSING
from prep.readers.encodings import repair


def unite(values: list[Any]) -> pa.Array:
    """The values of a key as an array: of their type, or a union if they are of several."""
    kinds = [_find_kind(value) for value in values]
    names = [kind for kind in dict.fromkeys(kinds) if kind is not None]
    # What is missing goes with the values of the first kind.
    codes = [0 if kind is None else names.index(kind) for kind in kinds]
    parts: list[list[Any]] = [[] for _ in range(max(len(names), 1))]
    offsets = []
    for value, code in zip(values, codes, strict=True):
        offsets.append(len(parts[code]))
        parts[code].append(None if value is MISSING else value)
    if len(names) < 2:
        return _make_array(names[0] if names else None, parts[0])
    arrays = [_make_array(kind, part) for kind, part in zip(names, parts, strict=True)]
    return pa.UnionArray.from_dense(
        pa.array(codes, pa.int8()), pa.array(offsets, pa.int32()), arrays
    )


def _find_kind(value: Any) -> type | None:
    """What a value is compared as; None if it is missing or null."""
    if value is MISSING or value is None:
        return None
    return float if type(value) is int else type(value)


def _make_array(kind: type | None, values: list[Any]) -> pa.Array:
    """The values of one kind as an array; None = null."""
    if kind is str:
        return pa.array([value and repair(value)[0] for value in values], pa.large_string())
    if kind in (list, dict):  # --where refuses them by their type.
        return pa.array(
            [None if value is None else kind() for value in values],
            pa.list_(pa.null()) if kind is list else pa.struct([]),
        )
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, OverflowError):  # Numbers beyond 64 bits.
        return pa.array([value if value is None else _to_float(value) for value in values])


def _to_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)
