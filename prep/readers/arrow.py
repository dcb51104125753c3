"""Text columns of Arrow IPC: files, as Feather 2 is, and streams, as `datasets` writes them.

The content tells which it is. Files are read, not mapped: one that shrinks would end the process.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from prep.readers.columns import (
    Column,
    check_bounds,
    cut_rows,
    find_columns,
    find_text_column,
    join_small,
    measure_texts,
    pick,
    unify,
)
from prep.readers.documents import BadDocument
from prep.readers.whole import list_names, refuse_no_chats, write_batches

MAX_BATCH_BYTES = 2 << 30  # read of one record batch, as it is in the file
_FILE_MARK = b"ARROW1"
_FEATHER_1_MARK = b"FEA1"
# Text from which that of a whole file is estimated.
_SAMPLED_BYTES = 8 << 20
_ALL = range(1 << 62)
# Rows of chats at a time.
_CHAT_ROWS = 256


def read_arrow_columns(
    path: Path,
    text_column: str,
    columns: Sequence[str],
    batches: range,
    max_rows: int,
    max_bytes: int,
) -> Iterator[tuple[pa.Array, pa.Array, dict[str, pa.Array]]]:
    """Yield the texts of the record batches, the urls beside them, and the other `columns`.

    What `parquet.read_columns` does for parquet.
    """
    with _open(path) as source:
        schema = source.open_arrow().schema
        text, url, others = find_columns(schema, path, text_column, columns)
        found = [text, *([url] if url else []), *others]
        fields = _number_fields(schema, found)
        rows = _cut_all(_read_batches(source, fields, batches), found, max_rows, max_bytes)
        for batch in join_small(rows, max_rows, max_bytes):
            texts, *rest = batch.columns
            urls = rest.pop(0) if url else pa.nulls(len(texts), pa.large_string())
            yield texts, urls, dict(zip(columns, rest, strict=True))


def read_arrow_rows(
    path: Path, columns: Sequence[str], batches: range
) -> Iterator[tuple[pa.Array, pa.Array, dict[str, pa.Array]]]:
    """What `whole.read_parquet_rows` does for parquet."""
    with _open(path) as source:
        schema = source.open_arrow().schema
        refuse_no_chats(path, schema.names)
        fields = [schema.names.index(name) for name in list_names(schema, path, columns)]
        yield from write_batches(_check_all(_read_batches(source, fields, batches)), path, columns)


def _check_all(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Record batches, a part of each at a time; ArrowInvalid for what is out of bounds."""
    for batch in batches:
        batch.validate(full=True)
        for start in range(0, len(batch), _CHAT_ROWS):
            yield batch.slice(start, _CHAT_ROWS)


def split_batches(path: Path, max_bytes: int) -> list[tuple[int, int, int]]:
    """Group record batches into parts of about `max_bytes`: (first batch, end, first row) each.

    None of a stream: a record batch in it is found only by reading all before it.
    """
    with _open(path) as source:
        if not source.is_file:
            return []
        fields = list(source.open_arrow().schema)
        small = [i for i, field in enumerate(fields) if pa.types.is_primitive(field.type)]
        sizes = [len(batch) for batch in _read_batches(source, (small or [0])[:1], _ALL)]
        first_rows = list(accumulate(sizes, initial=0))
        step = max(max_bytes * len(sizes) // source.num_bytes, 1)
        starts = range(0, len(sizes), step)
        return [(start, min(start + step, len(sizes)), first_rows[start]) for start in starts]


def measure_arrow_column(path: Path, text_column: str) -> int:
    """Estimate how many bytes a column takes once decoded, from the first record batches."""
    with _open(path) as source:
        reader = source.open_arrow()
        column = find_text_column(reader.schema, path, text_column)
        num_bytes = number = 0
        batches = _read_batches(source, _number_fields(reader.schema, [column]), _ALL)
        for batch in batches:
            number += 1
            num_bytes += int(measure_texts(_pick(batch, column)).sum())
            if num_bytes > _SAMPLED_BYTES:
                break
        if source.is_file:
            return num_bytes * int(reader.num_record_batches) // max(number, 1)
        return num_bytes * source.num_bytes // source.tell()


class _Source(io.BufferedReader):
    """A file that Arrow reads; BadDocument once more is read than a record batch may have.

    Arrow asks a file for the columns that it wants, and a stream for all.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.path = path
        self.num_bytes = self.seek(0, io.SEEK_END)
        self.allow_batch()
        self.seek(0)
        self.head = self.read(len(_FILE_MARK))
        self.is_file = self.head == _FILE_MARK

    def allow_batch(self) -> None:
        """Let the bytes of one more record batch be read."""
        self.num_left = MAX_BATCH_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes; fewer at the end of the file, however many a damaged one claims."""
        rest = max(self.num_bytes - self.tell(), 0)
        wanted = rest if size is None or size < 0 else min(size, rest)
        self.num_left -= wanted
        if self.num_left < 0:
            raise _too_large(self.path)
        self.has_ended = size != 0 and not wanted
        return super().read(wanted)

    def open_arrow(self, fields: Sequence[int] | None = None) -> Any:
        """A reader of the record batches, from the start; of all columns, or of some by number."""
        self.seek(0)
        options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
        make = pa.ipc.open_file if self.is_file else pa.ipc.open_stream
        return make(pa.PythonFile(self, "r"), options=options)


@contextmanager
def _open(path: Path) -> Iterator[_Source]:
    """A file to read; BadDocument for what cannot be read here."""
    with _Source(path) as source:
        if source.head.startswith(_FEATHER_1_MARK):
            raise BadDocument(
                f"{path}: is a Feather file of version 1; expected version 2; write it again with "
                "pandas.read_feather(...).to_feather(...)",
                "Feather version 1",
            )
        try:
            yield source
        except MemoryError:  # A compressed buffer, or a damaged one, states any size.
            raise _too_large(path) from None


def _too_large(path: Path) -> BadDocument:
    return BadDocument(
        f"{path}: has a record batch of more than {MAX_BATCH_BYTES >> 30} GiB, or one that takes "
        "more memory than there is; write it again in smaller ones: max_chunksize=1000 in "
        "pyarrow's write_table, or save_to_disk of datasets",
        "too large",
    )


def _number_fields(schema: pa.Schema, columns: Sequence[Column]) -> list[int]:
    return sorted({schema.names.index(column[0]) for column in columns})


def _read_batches(
    source: _Source, fields: Sequence[int], wanted: range
) -> Iterator[pa.RecordBatch]:
    """Yield the wanted record batches with some of their columns, whose values are not checked.

    A stream is wanted as a whole, and followed to its end marker.
    """
    reader = source.open_arrow(fields)
    if source.is_file:
        for number in range(wanted.start, min(wanted.stop, reader.num_record_batches)):
            source.allow_batch()
            yield reader.get_batch(number)
        return
    while True:
        source.allow_batch()
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            break
        yield batch
        del batch  # A large one is not held while the next one is read.
    if source.has_ended:
        raise OSError("it ends without its end marker, so record batches may be missing")
    if rest := source.num_bytes - source.tell():
        raise OSError(f"{rest:,} bytes follow its end")


def _cut_all(
    batches: Iterator[pa.RecordBatch], columns: Sequence[Column], max_rows: int, max_bytes: int
) -> Iterator[pa.RecordBatch]:
    """The columns of record batches, cut into some of so many rows and bytes."""
    names = list(map(str, range(len(columns))))
    for batch in batches:
        arrays = [_pick(batch, column) for column in columns]
        del batch
        for part in cut_rows(arrays, max_rows, max_bytes):
            yield pa.RecordBatch.from_arrays(part, names)
            del part
        del arrays


def _pick(batch: pa.RecordBatch, column: Column) -> pa.Array:
    """A column of a record batch, or a field in it; a dictionary's texts become large strings.

    ArrowInvalid for offsets and places that are out of bounds. Whether text is UTF-8 is not
    checked yet.
    """
    batch.validate()
    values = pick(batch, column)
    if not pa.types.is_dictionary(values.type):
        return check_bounds(values)
    return pa.DictionaryArray.from_arrays(
        check_bounds(values.indices), unify(check_bounds(values.dictionary)), safe=True
    )
