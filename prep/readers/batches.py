"""Documents read one by one, collected into batches of Arrow arrays."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from prep.readers.documents import MISSING, BadDocument, Documents, Piece
from prep.readers.encodings import repair

MAX_BATCH_DOCUMENTS = 1000
MAX_BATCH_BYTES = 8 << 20
# A longer document is most likely a file that is not what it should be; and handling one takes no
# more than a few times its size in memory.
MAX_DOCUMENT_BYTES = 256 << 20


class Document(NamedTuple):
    """One document as it is in its file."""

    text: str | pa.LargeStringScalar | None  # Arrow's for a very long one
    url: str | None
    row: int
    repaired: bool
    values: tuple[Any, ...] = ()  # of the other keys that were asked for; MISSING where not there
    bad: BadDocument | None = None  # why there is no text, if bad documents are not errors


def mark_bad(error: BadDocument, row: int, keys: Sequence[str] = ()) -> Document:
    """A document that cannot be read, to be left out and counted."""
    return Document(None, None, row, False, (MISSING,) * len(keys), error)


def check_size(num_bytes: int, place: str, advice: str) -> None:
    """Raise BadDocument for a document that is too large."""
    if bad := find_excess(num_bytes, place, advice):
        raise bad


def find_excess(num_bytes: int, place: str, advice: str) -> BadDocument | None:
    """What to say of a document if it is too large."""
    if num_bytes <= MAX_DOCUMENT_BYTES:
        return None
    return BadDocument(
        f"{place}: a document of more than {MAX_DOCUMENT_BYTES >> 20} MiB; {advice}; "
        "split it, or leave it out",
        "too large",
    )


def expect_keys(
    read: Callable[[Piece], Iterator[Document]],
    piece: Piece,
    keys: Sequence[str],
    describe: Callable[[], str],
) -> Iterator[Document]:
    """Pass a piece's documents on; ValueError at the end if none of the file has one of the keys.

    A slip would drop them all. A piece without the key is looked up in its whole file. `describe`
    says where the key is not, and which keys there are.
    """
    unseen = set(enumerate(keys))
    has_documents = False
    for document in read(piece):
        if unseen and document.bad is None:
            has_documents = True
            unseen -= {entry for entry in unseen if document.values[entry[0]] is not MISSING}
        yield document
        del document
    if not (unseen and has_documents):
        return
    if piece.start or piece.stop is not None:
        for document in read(Piece(piece.path, piece.name)):
            unseen -= {entry for entry in unseen if document.values[entry[0]] is not MISSING}
            if not unseen:
                return
    _, key = min(unseen)
    raise ValueError(
        f"{piece.path}: no key {key!r} {describe()}; name one of them in --where or "
        "--keep-column, or leave the file out"
    )


def collect(
    documents: Iterable[Document], path: str, row_name: str = "row", columns: Sequence[str] = ()
) -> Iterator[Documents]:
    """Collect documents into batches."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        text = document.text
        # Characters or bytes: either keeps a batch from growing without bound.
        size += text.as_buffer().size if isinstance(text, pa.Scalar) else len(text or "")
        if len(batch) == MAX_BATCH_DOCUMENTS or size >= MAX_BATCH_BYTES:
            transposed = _transpose(batch, path, row_name, columns)
            del document, text  # Large texts are not held twice while they are encoded.
            batch, size = [], 0
            yield transposed
            del transposed
    if batch:
        yield _transpose(batch, path, row_name, columns)


def _transpose(
    batch: list[Document], path: str, row_name: str, columns: Sequence[str]
) -> Documents:
    texts, urls, rows, repaired, others, bad = zip(*batch, strict=True)
    return Documents(
        pa.array(texts, pa.large_string()),
        pa.array(urls, pa.string()),
        np.array(rows, np.int64),
        np.array(repaired, np.bool_),
        {name: unite([row[i] for row in others]) for i, name in enumerate(columns)},
        {place: error for place, error in enumerate(bad) if error},
        path,
        row_name,
    )


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
    if kind in (list, dict):  # --where and --keep-column refuse them by their type.
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
