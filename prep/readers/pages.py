"""What the headers of a parquet column's pages say: how much memory its rows take once decoded.

A footer counts what is stored. A text that a dictionary stores once may stand in any number of
rows, so how many rows may be decoded at a time is taken from the pages, which are small to look
at: a header, some 30 bytes, for about a megabyte of data.

The format is apache/parquet-format's parquet.thrift (PageHeader), in Thrift's compact protocol.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prep.readers.documents import BadDocument
from prep.readers.thrift import PageError, Reader
from shards.screen.lines import format_bytes

# A page is decompressed whole. A larger one leaves no room in a worker's GiB, and is refused unless
# the file itself is as large: writers put a thousand rows into a page, whatever their size.
_MAX_PAGE_BYTES = 384 << 20
# The pages are asked if a footer says this many times what is stored, or a dictionary may make it.
_INCREDIBLE_RATIO = 1000
_SUSPICIOUS_RATIO = 2
# Some old files leave the header of the dictionary out of a chunk's size.
_SLACK_BYTES = 100
# A dictionary is not read to find its longest text if so many rows may take so much anyway.
_ENOUGH_ROWS, _ENOUGH_BYTES = 16, 96 << 20

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_DICTIONARY_ENCODINGS, _DELTA_BYTE_ARRAY = (2, 8), 7
# Most headers are shorter; those that quote the least and the greatest text may be much longer.
_HEADER_BYTES, _MAX_HEADER_BYTES = 512, 16 << 20


@dataclass(frozen=True)
class Chunk:
    """Where a column of a row group lies in its file, and what the footer says about it."""

    name: str
    start: int
    stop: int
    num_rows: int  # or of what is in lists: the number of values
    num_bytes: int  # before compression, with headers
    codec: str  # as pyarrow calls it
    stores_differences: bool  # from the text before it, in some pages at least


@dataclass(frozen=True)
class Page:
    """A page of a column; sizes are in bytes."""

    num_rows: int
    num_bytes: int  # before compression
    encoding: int
    start: int  # of its content in the file
    stop: int
    is_dictionary: bool

    @property
    def is_looked_up(self) -> bool:
        """Whether its rows are places in the dictionary."""
        return self.encoding in _DICTIONARY_ENCODINGS


@dataclass(frozen=True)
class Pages:
    """The pages of a chunk: a dictionary, if it has one, and data."""

    chunk: Chunk
    dictionary: Page | None
    data: tuple[Page, ...]


def find_chunks(
    file: pq.ParquetFile, path: Path, groups: range, columns: Sequence[tuple[str, ...]]
) -> list[list[Chunk]]:
    """The chunks of the columns, and of what is in them, that hold text or bytes, by row group.

    PageError if they cannot be where the footer says.
    """
    names = tuple(".".join((*column, "")) for column in columns)
    leaves = [(place, file.schema.column(place)) for place in range(len(file.schema))]
    chosen = [
        (place, leaf.max_repetition_level > 0)
        for place, leaf in leaves
        if f"{leaf.path}.".startswith(names) and leaf.physical_type == "BYTE_ARRAY"
    ]
    found = [[_find_chunk(file.metadata.row_group(i), *leaf) for leaf in chosen] for i in groups]
    num_bytes = path.stat().st_size
    # Without rows a chunk need not be anywhere.
    chunks = [chunk for group in found for chunk in group if chunk.num_rows]
    chunks.sort(key=lambda chunk: chunk.start)
    for chunk in chunks:
        is_inside = 4 <= chunk.start <= chunk.stop <= num_bytes
        if not is_inside or min(chunk.num_rows, chunk.num_bytes) < 0:
            raise PageError(f"the footer states impossible sizes of the column {chunk.name!r}")
    if any(chunk.stop > following.start for chunk, following in pairwise(chunks)):
        raise PageError("the footer puts two row groups in one place")
    return found


def _find_chunk(group: Any, place: int, is_in_list: bool) -> Chunk:
    column = group.column(place)
    if column.num_values != group.num_rows and not is_in_list:
        raise PageError(f"the footer states two numbers of rows for {column.path_in_schema!r}")
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    return Chunk(
        column.path_in_schema,
        start,
        start + column.total_compressed_size,
        column.num_values,
        column.total_uncompressed_size,
        column.compression,
        "DELTA_BYTE_ARRAY" in column.encodings,
    )


def find_doubtful(file: BinaryIO, chunk: Chunk) -> Pages | None:
    """The pages of a chunk whose rows, each with a text of its own, may take more than it states.

    PageError if what it states is wrong.
    """
    if not chunk.num_rows:
        return None
    first = _read_page(file, chunk.start, chunk.stop)
    mean = first.num_bytes / max(first.num_rows, 1) if first.is_dictionary else 0.0
    stored = chunk.stop - chunk.start
    if (
        chunk.num_rows * mean <= _SUSPICIOUS_RATIO * chunk.num_bytes
        and stored <= _SUSPICIOUS_RATIO * chunk.num_bytes
        and chunk.num_bytes <= _INCREDIBLE_RATIO * stored
    ):
        return None
    pages = _read_pages(file, chunk)
    total = sum(page.num_bytes for page in (first, *pages.data))
    if chunk.num_bytes > _SUSPICIOUS_RATIO * total + (1 << 20):
        sizes = f"{chunk.num_bytes:,} bytes for {chunk.name!r}, its pages {total:,}"
        raise PageError(f"the footer states {sizes}")
    return pages


def read_pages(file: BinaryIO, path: Path, chunk: Chunk) -> Pages:
    """Read the headers of a chunk's pages.

    Raises PageError if they do not hold the rows that the footer says, and BadDocument if one is
    too large to be read.
    """
    pages = _read_pages(file, chunk)
    for page in (*([pages.dictionary] if pages.dictionary else []), *pages.data):
        if page.num_bytes > max(_MAX_PAGE_BYTES, _INCREDIBLE_RATIO * (page.stop - page.start)):
            what = "dictionary" if page.is_dictionary else "page"
            raise BadDocument(
                f"{path}: the column {chunk.name!r} has a {what} of {format_bytes(page.num_bytes)} "
                f"for {page.num_rows:,} texts; expected at most {_MAX_PAGE_BYTES >> 20} MiB in "
                "one; write the file again with smaller pages (documents of more than 256 MiB are "
                "not read), or leave it out",
                "too large",
            )
    return pages


def _read_pages(file: BinaryIO, chunk: Chunk) -> Pages:
    dictionary, data = None, []
    position, num_rows = chunk.start, 0
    while num_rows < chunk.num_rows and position < chunk.stop:
        page = _read_page(file, position, chunk.stop)
        position = page.stop
        if page.is_dictionary:
            dictionary = page
        elif page.num_rows:
            data.append(page)
            num_rows += page.num_rows
    if num_rows != chunk.num_rows:
        raise PageError(
            f"the column {chunk.name!r} holds {num_rows:,} rows, the footer says {chunk.num_rows:,}"
        )
    return Pages(chunk, dictionary, tuple(data))


def choose_rows(
    file: BinaryIO, pages: Pages, max_rows: int, max_bytes: int, keeps_dictionary: bool = False
) -> int:
    """How many rows of a chunk may be decoded at a time: at most `max_rows`, at least 1.

    However they lie, they take at most `max_bytes`, besides what the largest page or entry takes.
    A row that keeps its dictionary takes nothing if it is looked up there.
    """
    if not pages.data:
        return max_rows
    longest = 0
    if pages.dictionary is not None and not keeps_dictionary:
        longest = pages.dictionary.num_bytes
        if _ENOUGH_ROWS * longest <= _ENOUGH_BYTES:  # As exact as need be, and read only once.
            max_bytes = max(max_bytes, _ENOUGH_BYTES)
        else:
            longest = _find_longest(file, pages.dictionary, pages.chunk.codec)
    rows = np.array([page.num_rows for page in pages.data])
    sizes = np.array([float(page.num_bytes) for page in pages.data])
    is_plain = np.array([not _repeats(page) for page in pages.data])
    sizes = np.where([page.is_looked_up for page in pages.data], longest, sizes)
    ends = np.cumsum(rows)
    limit = max_bytes + sizes.max()
    while max_rows > 1:
        # A batch that begins with the last row of a page reaches most others.
        touched = np.minimum(np.searchsorted(ends, ends + max_rows - 1), len(ends) - 1)
        totals = np.cumsum(np.where(is_plain, sizes, sizes * np.minimum(rows, max_rows)))
        before = np.append(0, totals[:-1])
        if (totals[touched] - before).max() <= limit:
            break
        max_rows //= 2
    return max_rows


def _repeats(page: Page) -> bool:
    """Whether a row may take as much as the whole page, or as the longest entry."""
    return page.is_looked_up or page.encoding == _DELTA_BYTE_ARRAY


def _find_longest(file: BinaryIO, page: Page, codec: str) -> int:
    """The size of the longest entry of a dictionary; the page's if it cannot be read here."""
    if page.num_rows <= 1:
        return page.num_bytes
    file.seek(page.start)
    content = memoryview(file.read(page.stop - page.start))
    if codec != "UNCOMPRESSED":
        try:
            content = memoryview(pa.Codec(codec.lower()).decompress(content, page.num_bytes))
        except (ValueError, OSError, pa.ArrowException):
            return page.num_bytes
    longest = position = 0
    while position + 4 <= len(content):
        (size,) = struct.unpack_from("<I", content, position)
        longest = max(longest, size)
        position += 4 + size
    return min(longest, page.num_bytes)


def _read_page(file: BinaryIO, start: int, stop: int) -> Page:
    """Read the header of the page at `start`, in a chunk that ends at `stop`."""
    stop += _SLACK_BYTES
    limit = min(_MAX_HEADER_BYTES, stop - start)
    num_bytes = min(_HEADER_BYTES, limit)
    while True:
        file.seek(start)
        reader = Reader(file.read(num_bytes))
        try:
            header = reader.read_struct()
            break
        except IndexError:
            if num_bytes >= limit:
                raise PageError("a page's header does not end") from None
            num_bytes = min(num_bytes * 8, limit)
    try:
        kind, size, stored = header[1], header[2], header[3]
        inner = header.get({_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}.get(kind, 0), {1: 0, 2: 0, 4: 0})
        num_rows, encoding = inner[1], inner[4 if kind == _DATA_V2 else 2]
    except (KeyError, TypeError):
        raise PageError("a page's header is not one") from None
    content = start + reader.position
    if min(size, stored, num_rows) < 0 or content + stored > stop:
        raise PageError("a page's header states an impossible size")
    return Page(num_rows, size, encoding, content, content + stored, kind == _DICTIONARY)
