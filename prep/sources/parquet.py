"""Text columns of parquet files, read with pyarrow alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from prep.sources.lines import decode

# A column is read through a window of this size; without one, Arrow holds the compressed column of
# a whole row group. (A memory map would spare the copy, but end the process if the file shrinks.)
_BUFFER_BYTES = 1 << 20


def read_columns(
    path: Path,
    text_column: str,
    columns: Sequence[str],
    groups: range,
    max_rows: int,
    max_bytes: int,
) -> Iterator[tuple[pa.Array, pa.Array, dict[str, pa.Array]]]:
    """Yield the texts of the row groups, the urls beside them, and the other `columns`.

    A batch has at most `max_rows` rows, and `max_bytes` bytes unless a single row has more. Texts
    and urls are large strings whose bytes are not checked yet.
    """
    with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, page_checksum_verification=True) as file:
        check_text_column(file, path, text_column)
        check_columns(file, path, columns)
        groups = groups[: file.num_row_groups - groups.start]
        has_url = "url" in file.schema_arrow.names and _is_text(file.schema_arrow.field("url").type)
        wanted = dict.fromkeys([text_column, *columns, *(["url"] if has_url else [])])
        for batch in file.iter_batches(
            _choose_rows(file, groups, text_column, max_rows, max_bytes),
            row_groups=groups,
            columns=list(wanted),
            use_threads=False,
        ):
            texts = _unify(batch.column(text_column))
            no_urls = pa.nulls(len(texts), pa.large_string())
            urls = _unify(batch.column("url")) if has_url else no_urls
            for rows in _halve(texts, max_bytes):
                yield texts[rows], urls[rows], {name: batch.column(name)[rows] for name in columns}


def check_text_column(file: pq.ParquetFile, path: Path, text_column: str) -> None:
    """Raise ValueError if a file has no such column, or no text in it."""
    check_columns(file, path, [text_column], "; name the right one with --text-column")
    found = file.schema_arrow.field(text_column).type
    if not _is_text(found):
        raise ValueError(
            f"{path}: the column {text_column!r} holds {found}; expected text; "
            "name the right one with --text-column"
        )


def check_columns(
    file: pq.ParquetFile, path: Path, columns: Sequence[str], advice: str = ""
) -> None:
    """Raise ValueError for the first of the columns that a file does not have."""
    names = file.schema_arrow.names
    for column in columns:
        if column not in names:
            known = ", ".join(names)
            raise ValueError(f"{path}: no column {column!r}; the columns are {known}{advice}")


def split_row_groups(path: Path, max_bytes: int) -> list[tuple[int, int, int]]:
    """Group row groups into parts of about `max_bytes`: (first group, end, first row) each."""
    with pq.ParquetFile(path) as file:
        cuts: list[tuple[int, int, int]] = []
        start = start_row = row = num_bytes = 0
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            size = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
            if number > start and num_bytes + size > max_bytes:
                cuts.append((start, number, start_row))
                start, start_row, num_bytes = number, row, 0
            num_bytes += size
            row += group.num_rows
        return [*cuts, (start, file.num_row_groups, start_row)]


def measure_column(path: Path, text_column: str) -> int:
    """Return the size of a column before compression, from the file's footer."""
    with pq.ParquetFile(path) as file:
        check_text_column(file, path, text_column)
        groups = range(file.num_row_groups)
        return sum(
            _find_chunk(file, group, text_column).total_uncompressed_size for group in groups
        )


def _find_chunk(file: pq.ParquetFile, group: int, name: str) -> Any:
    """Return what the footer says about a column in a row group."""
    metadata = file.metadata.row_group(group)
    chunks = (metadata.column(i) for i in range(metadata.num_columns))
    return next(chunk for chunk in chunks if chunk.path_in_schema == name)


def _choose_rows(
    file: pq.ParquetFile, groups: range, text_column: str, max_rows: int, max_bytes: int
) -> int:
    """Choose the rows to decode at a time, so that long documents do not pile up in memory."""
    longest_mean = 1.0
    for group in groups:
        num_rows = max(file.metadata.row_group(group).num_rows, 1)
        size = _find_chunk(file, group, text_column).total_uncompressed_size
        longest_mean = max(longest_mean, size / num_rows)
    return max(1, min(max_rows, int(max_bytes / longest_mean)))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    plain = (pa.string(), pa.large_string(), pa.string_view())
    as_bytes = (pa.binary(), pa.large_binary(), pa.binary_view())
    return kind in (*plain, *as_bytes, pa.null())


def _unify(column: pa.Array) -> pa.Array:
    """Turn every kind of text column into large strings, without checking their bytes."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type in (pa.string(), pa.large_string(), pa.null()):
        return column.cast(pa.large_string())
    return column.cast(pa.large_binary()).view(pa.large_string())


def _halve(column: pa.Array, max_bytes: int, start: int = 0) -> Iterator[slice]:
    """Cut a column, which starts at row `start`, into slices of at most `max_bytes` or one row."""
    if len(column) <= 1 or column.nbytes <= max_bytes:
        yield slice(start, start + len(column))
        return
    middle = len(column) // 2
    yield from _halve(column[:middle], max_bytes, start)
    yield from _halve(column[middle:], max_bytes, start + middle)


def make_valid(column: pa.Array) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Replace invalid UTF-8 by U+FFFD, as Arrow does not check it; also says in which rows."""
    try:
        column.validate(full=True)
        return column, np.zeros(len(column), np.bool_)
    except pa.ArrowInvalid:
        found = column.cast(pa.large_binary()).to_pylist()
    pairs = [(None, False) if data is None else decode(data) for data in found]
    values, repaired = zip(*pairs, strict=True)
    return pa.array(values, pa.large_string()), np.array(repaired, np.bool_)
