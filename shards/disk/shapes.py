"""The shape that JSON must have: which keys, holding what, within which bounds.

str, int, bool, dict, list      of that type; an int is 0 or more and fits into 64 bits
NUMBER, HASH                    a finite number; a sha256 in hexadecimal
OrNull(shape)                   that, or null
[shape]                         a list of such values
{"key": shape, "other?": shape} an object with these keys, the second of which may be missing;
                                further keys may be there and are not looked at
Only({...})                     the same, with no further keys
Each(shape)                     an object of any keys, each with such a value
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Shape = Any

# The largest number that may stand in a file: counts and positions are held in 64 bits.
MAX_INT = 2**63 - 1


@dataclass(frozen=True)
class Kind:
    """A kind of value that is no type of its own."""

    name: str


@dataclass(frozen=True)
class OrNull:
    """A value of a shape, or null."""

    shape: Shape


@dataclass(frozen=True)
class Only:
    """An object with these keys and no others."""

    keys: dict[str, Shape]


@dataclass(frozen=True)
class Each:
    """An object of any keys, with a value of this shape for each."""

    shape: Shape


NUMBER = Kind("a number")
HASH = Kind("a sha256, 64 hexadecimal digits")
NAMES = {
    str: "text",
    int: f"a whole number from 0 to {MAX_INT:,}",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def find_misshape(value: Any, shape: Shape, place: str = "") -> str | None:
    """Where a value does not have a shape, in words; None if it does.

    >>> find_misshape({"a": [1, "2"]}, {"a": [str]})
    'a[0] is 1; expected text'
    >>> find_misshape({"a": "no hash"}, {"a": OrNull(HASH)})
    "a is 'no hash'; expected a sha256, 64 hexadecimal digits"
    """
    if isinstance(shape, OrNull):
        return None if value is None else find_misshape(value, shape.shape, place)
    if not is_kind(value, shape):
        name = shape.name if isinstance(shape, Kind) else NAMES[find_type(shape)]
        return f"{place} is {value!r:.60}; expected {name}"
    if isinstance(shape, type | Kind):
        return None  # It has no parts.
    keys = list_keys(shape)
    inner = f"{place}." if place else ""
    missing = [key for key in keys if not key.endswith("?") and key not in value]
    if missing:
        return f"{inner}{missing[0]} is missing"
    if isinstance(shape, Only):
        known = {key.rstrip("?") for key in keys}
        further = [key for key in value if key not in known]
        if further:
            return f"{inner}{further[0]:.60} is not a key that this velocity knows"
    parts = list_parts(value, shape, place)
    return next((fault for part in parts if (fault := find_misshape(*part))), None)


def list_keys(shape: Shape) -> dict[str, Shape]:
    """The keys that a shape names; none if it is not that of an object."""
    keys = shape.keys if isinstance(shape, Only) else shape
    return keys if isinstance(keys, dict) else {}


def list_parts(value: Any, shape: Shape, place: str) -> Iterator[tuple[Any, Shape, str]]:
    """The parts of a list or object, each with its shape and its place."""
    inner = f"{place}." if place else ""
    if isinstance(shape, list):
        yield from ((entry, shape[0], f"{place}[{i}]") for i, entry in enumerate(value))
    elif isinstance(shape, Each):
        yield from ((value[key], shape.shape, f"{inner}{key:.60}") for key in value)
    for key, part in list_keys(shape).items():
        name = key.rstrip("?")
        if name in value:
            yield value[name], part, inner + name


def is_kind(value: Any, shape: Shape) -> bool:
    """Whether a value is of a shape's kind, whatever its parts are."""
    if shape is HASH:
        return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
    if shape is NUMBER:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and abs(value) <= MAX_INT and math.isfinite(value)
    if isinstance(value, bool):  # Which Python takes for an int.
        return shape is bool
    if shape is int:
        return isinstance(value, int) and 0 <= value <= MAX_INT
    return isinstance(value, find_type(shape))


def find_type(shape: Shape) -> type:
    """The type of the values that have a shape."""
    if isinstance(shape, type):
        return shape
    return list if isinstance(shape, list) else dict
