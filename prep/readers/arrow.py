"""Text columns of Arrow IPC: files, as Feather 2 is, and streams, as `datasets` writes them.

pyarrow reads a record batch as a whole, or maps the file into memory, which ends the process if
the file shrinks. So a window of rows is read here, however large their record batch is.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from prep.ipc.buffers import MAX_HELD_BYTES, Body, TooLarge
from prep.ipc.messages import DICTIONARY, Messages
from prep.ipc.parts import Part, open_part
from prep.readers.batches import MAX_DOCUMENT_BYTES
from prep.readers.columns import Column, find_columns, find_text_column, join_small
from prep.readers.documents import BadDocument

_FEATHER_1_MARK = b"FEA1"
_ALL = range(1 << 62)


def read_arrow_columns(
    path: Path,
    text_column: str,
    columns: Sequence[str],
    batches: range,
    max_rows: int,
    max_bytes: int,
) -> Iterator[tuple[pa.Array, pa.Array, dict[str, pa.Array]]]:
    """Yield the texts of the record batches, the urls beside them, and the other `columns`.

    What `parquet.read_columns` does for parquet; `max_rows` is a multiple of 8. A text that is too
    large for a document is read as far as tells so.
    """
    with _open(path) as messages:
        text, url, others = find_columns(messages.schema, path, text_column, columns)
        found = [text, *([url] if url else []), *others]
        rows = (
            pa.RecordBatch.from_arrays(arrays, list(map(str, range(len(found)))))
            for parts, num_rows in _open_batches(messages, found, batches)
            for arrays in _read_rows(parts, num_rows, max_rows, max_bytes)
        )
        for batch in join_small(rows, max_rows, max_bytes):
            texts, *rest = batch.columns
            del batch  # A large one is not held while the next one is read.
            urls = rest.pop(0) if url else pa.nulls(len(texts), pa.large_string())
            yield texts, urls, dict(zip(columns, rest, strict=True))
            del texts, urls, rest


def split_batches(path: Path, max_bytes: int) -> list[tuple[int, int, int]]:
    """Group record batches into parts of about `max_bytes`: (first batch, end, first row) each."""
    with _open(path) as messages:
        cuts: list[tuple[int, int, int]] = []
        start = start_row = row = num_bytes = number = 0
        for message in messages:
            if message.kind == DICTIONARY:
                continue
            if number > start and num_bytes + message.num_bytes > max_bytes:
                cuts.append((start, number, start_row))
                start, start_row, num_bytes = number, row, 0
            number += 1
            num_bytes += message.num_bytes
            row += message.num_rows
        return [*cuts, (start, number, start_row)]


def measure_arrow_column(path: Path, text_column: str) -> int:
    """Return how many bytes a column takes once decoded, from the sizes of its texts."""
    with _open(path) as messages:
        column = find_text_column(messages.schema, path, text_column)
        return sum(
            part.measure(num_rows) for [part], num_rows in _open_batches(messages, [column], _ALL)
        )


@contextmanager
def _open(path: Path) -> Iterator[Messages]:
    """A file's messages; BadDocument for what cannot be read here."""
    with open(path, "rb", buffering=0) as file:
        if file.read(len(_FEATHER_1_MARK)) == _FEATHER_1_MARK:
            raise BadDocument(
                f"{path}: is a Feather file of version 1; expected version 2; write it again with "
                "pandas.read_feather(...).to_feather(...)",
                "Feather version 1",
            )
        try:
            yield Messages(file)
        except TooLarge:
            raise BadDocument(
                f"{path}: has a record batch of which more than {MAX_HELD_BYTES >> 30} GiB would "
                "have to be held in memory; write it again with smaller ones, or uncompressed",
                "too large",
            ) from None


def _open_batches(
    messages: Messages, columns: Sequence[Column], wanted: range
) -> Iterator[tuple[list[Part], int]]:
    """Yield the columns of each wanted record batch, and its number of rows.

    A stream is followed to its end marker, unless only batches before some other are wanted.
    """
    fields = [_find_field(messages, column) for column in columns]
    dictionaries: dict[int | None, pa.Array] = {}
    number = 0
    for message in messages:
        if message.kind == DICTIONARY:
            key = message.header.number(0, "<q")
            kinds = [field.type.value_type for field, used in fields if used == key]
            if kinds:
                values = _read_dictionary(Body(messages, message, MAX_DOCUMENT_BYTES + 1), kinds[0])
                is_delta = message.header.number(2, "<?") and key in dictionaries
                dictionaries[key] = (
                    pa.concat_arrays([dictionaries[key], values]) if is_delta else values
                )
            continue
        if number in wanted:
            body = Body(messages, message, MAX_DOCUMENT_BYTES + 1)
            parts = [
                open_part(body, messages.schema, column, dictionaries.get(key))
                for column, (_, key) in zip(columns, fields, strict=True)
            ]
            yield parts, message.num_rows
        number += 1
        if number == wanted.stop:
            return


def _find_field(messages: Messages, column: Column) -> tuple[pa.Field, int | None]:
    """The field at the end of a column's names, and the number of its dictionary if it has one."""
    assert messages.first is not None
    fields, tables = list(messages.schema), messages.first.header.tables(1)
    for name in column:
        place = next(i for i, field in enumerate(fields) if field.name == name)
        field, table = fields[place], tables[place]
        if pa.types.is_struct(field.type):
            fields, tables = list(field.type), table.tables(5)
    encoding = table.table(4)
    if not pa.types.is_dictionary(field.type) or encoding is None:
        return field, None
    return field, encoding.number(0, "<q")


def _read_dictionary(body: Body, kind: pa.DataType) -> pa.Array:
    """The values of a dictionary, whole."""
    num_rows = body.message.num_rows
    part = open_part(body, pa.schema([("values", kind)]), ("values",), None)
    body.hold(part.measure(num_rows))
    return part.open(0, num_rows).read(0, num_rows)


def _read_rows(
    parts: Sequence[Part], num_rows: int, max_rows: int, max_bytes: int
) -> Iterator[list[pa.Array]]:
    """The rows of a record batch, so many at a time as have `max_bytes`, or one that has more."""
    for start in range(0, num_rows, max_rows):
        windows = [part.open(start, min(start + max_rows, num_rows)) for part in parts]
        ends = np.cumsum(sum((window.sizes for window in windows), np.int64(0)))
        first = 0
        while first < len(ends):
            most = max_bytes + (ends[first - 1] if first else 0)
            last = max(int(np.searchsorted(ends, most, "right")), first + 1)
            yield [window.read(first, last) for window in windows]
            first = last
