"""Documents between their files and their tokens: pieces of a file, batches of documents."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prep.files.stamp import Stamp
from shards.format import Int64


@dataclass(frozen=True)
class Piece:
    """A part of a source file that is read in one go; a large file is several."""

    path: str  # where to open it
    name: str  # what the data set calls it
    # Parquet: row group; an Arrow file, no stream: record batch; .jsonl: byte of a line; else 0.
    start: int = 0
    stop: int | None = None  # the end, exclusive, in the same unit; None = to the end
    first_row: int = 0  # the source row of the piece's first document
    # What the file looks like if it is still the one that was planned; None = not checked.
    stamp: Stamp | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ReadOptions:
    """What to read from a file, and how."""

    text_column: str
    # Other columns to read, for the filters.
    columns: tuple[str, ...]
    blank_line_documents: bool
    # Whether bad documents are left out, and told by `Documents.bad`; else they are errors.
    skips_bad: bool
    # The file's compression, as `open_stream` has it.
    codec: str | None = None


# Begins the reasons under which bad documents are counted as dropped.
BAD = "bad: "


class BadDocument(ValueError):
    """A document, or a whole file, that cannot be read: --on-bad-document says what becomes of it.

    The message is one line that names the file and the place in it; `reason` is what it is counted
    under. A reader that raises it leaves out the file, or the piece of the file, as a whole.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message, reason)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])

    def named(self, piece: "Piece") -> "BadDocument":
        """The same, with the name that the set has for the file instead of its path here."""
        return BadDocument(str(self).replace(piece.path, piece.name, 1), self.reason)


# The column of a batch that says why a document is dropped, where that was known when it was read.
DROPPED = "\0dropped"
# What a document has under a key that it does not have.
MISSING = object()


class Documents(NamedTuple):
    """A batch of documents, in the order of their file: as Arrow arrays, never a list of texts."""

    texts: pa.Array  # large_string, valid UTF-8; null = null in the source
    urls: pa.Array  # string, or null
    rows: Int64  # counted from 0: docs/formats.md says of what
    repaired: npt.NDArray[np.bool_]  # whether U+FFFD stands for what was invalid in the text
    columns: dict[str, pa.Array]  # the other columns that were asked for
    # Those that could not be read, by their place in the batch; their text is null.
    bad: Mapping[int, BadDocument] = MappingProxyType({})
    path: str = ""  # of their file, and what a row of it is called
    row_name: str = "row"

    def name(self, place: int) -> str:
        """What to call a document in a message."""
        return name_row(self.path, self.row_name, int(self.rows[place]))

    @property
    def num_bytes(self) -> Int64:
        """The size of each text in UTF-8; 0 for null."""
        offsets = find_offsets(self.texts)
        sizes = offsets[1:] - offsets[:-1]
        if self.texts.null_count:
            sizes[self.texts.is_null().to_numpy(zero_copy_only=False)] = 0
        return sizes

    def filter(self, kept: npt.NDArray[np.bool_]) -> "Documents":
        """The documents that `kept` marks."""
        mask = pa.array(kept)
        places = np.flatnonzero(kept).tolist() if self.bad else []
        return self._replace(
            texts=self.texts.filter(mask),
            urls=self.urls.filter(mask),
            rows=self.rows[kept],
            repaired=self.repaired[kept],
            columns={name: values.filter(mask) for name, values in self.columns.items()},
            bad={i: self.bad[place] for i, place in enumerate(places) if place in self.bad},
        )

    def first(self, count: int) -> "Documents":
        """The first `count` documents."""
        return self._replace(
            texts=self.texts[:count],
            urls=self.urls[:count],
            rows=self.rows[:count],
            repaired=self.repaired[:count],
            columns={name: values[:count] for name, values in self.columns.items()},
            bad={place: error for place, error in self.bad.items() if place < count},
        )


def name_row(path: str, row_name: str, row: int) -> str:
    """What to call a document in a message; lines are counted from 1, as editors do.

    >>> name_row("a.jsonl", "line", 0), name_row("a.csv", "row", 0)
    ('a.jsonl, line 1', 'a.csv, row 0')
    """
    return f"{path}, {row_name} {row + (row_name == 'line')}"


def find_offsets(texts: pa.Array) -> Int64:
    """Where each text begins in the array's buffer of bytes, and where the last one ends."""
    offsets = np.frombuffer(texts.buffers()[1], np.int64)
    return offsets[texts.offset : texts.offset + len(texts) + 1]


def split_name(name: str) -> Iterator[tuple[str, str]]:
    """The ways to read a name as that of a field inside another, the longest outer name first.

    >>> list(split_name("a.b.c"))
    [('a.b', 'c'), ('a', 'b.c')]
    """
    place = name.rfind(".")
    while place > 0:
        yield name[:place], name[place + 1 :]
        place = name.rfind(".", 0, place)


def find_value(found: dict[str, Any], name: str) -> Any:
    """What an object has under a key, or under `outer.inner` in the objects inside it, or MISSING.

    >>> find_value({"a.b": 1, "a": {"b": 2, "c": 3}}, "a.b"), find_value({"a": {"c": 3}}, "a.c")
    (1, 3)
    """
    if name in found:
        return found[name]
    for outer, inner in split_name(name):
        inside = found.get(outer, MISSING)
        if inside is None:
            return None
        if isinstance(inside, dict) and (value := find_value(inside, inner)) is not MISSING:
            return value
    return MISSING


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type, or its dictionary, holds text, checked as UTF-8 or not."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    plain = (pa.string(), pa.large_string(), pa.string_view())
    return kind in (*plain, pa.binary(), pa.large_binary(), pa.binary_view())
