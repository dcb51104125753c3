"""Text columns of parquet files, read with pyarrow alone."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prep.readers.columns import (
    Column,
    cut_rows,
    find_columns,
    find_text_column,
    join_small,
    pick,
)
from prep.readers.pages import (
    Pages,
    choose_rows,
    find_chunks,
    find_doubtful,
    read_pages,
)
from prep.readers.thrift import PageError

# A column is read through a window of this size; without one, Arrow holds the compressed column of
# a whole row group. (A memory map would spare the copy, but end the process if the file shrinks.)
_BUFFER_BYTES = 1 << 20
# What the rows that are decoded at a time may take, besides the largest page.
_DECODED_BYTES = 32 << 20
# Rows from which the text of a column that stores only differences is estimated.
_SAMPLED_ROWS = 100
# Rows of which the places in a dictionary are read at a time.
_INDEXED_ROWS = 1 << 16


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
        text, url, others = find_columns(file.schema_arrow, path, text_column, columns)
        groups = groups[: file.num_row_groups - groups.start]
        found = [text, *([url] if url else []), *others]
        batches = read_batches(file, path, groups, found, max_rows)
        for batch in join_small(batches, max_rows, max_bytes):
            for values in cut_rows([pick(batch, column) for column in found], max_rows, max_bytes):
                texts, *rest = values
                urls = rest.pop(0) if url else pa.nulls(len(texts), pa.large_string())
                yield texts, urls, dict(zip(columns, rest, strict=True))
                del values, texts, urls, rest
            del batch


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
    """Return about how many bytes a column takes once decoded.

    The footer says so, unless texts are stored once for several rows: then those are counted.
    """
    with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file, open(path, "rb") as source:
        column = find_text_column(file.schema_arrow, path, text_column)
        groups = range(file.num_row_groups)
        total = 0
        for group, chunks in zip(groups, find_chunks(file, path, groups, [column]), strict=True):
            num_bytes = 0
            for chunk in chunks:
                if pages := find_doubtful(source, chunk):
                    num_bytes += _measure(path, source, group, column, pages)
                else:
                    num_bytes += chunk.num_bytes
            if any(chunk.stores_differences for chunk in chunks):
                num_bytes = max(num_bytes, _sample(file, path, group, column))
            total += num_bytes
        return total


def _measure(path: Path, source: BinaryIO, group: int, column: Column, pages: Pages) -> int:
    """The bytes of a column's text in a row group, without making the text of each row."""
    num_bytes = sum(page.num_bytes for page in pages.data if not page.is_looked_up)
    left = sum(page.num_rows for page in pages.data if page.is_looked_up)
    if pages.dictionary is None or not left:
        return num_bytes
    limit = choose_rows(source, pages, _INDEXED_ROWS, _DECODED_BYTES, keeps_dictionary=True)
    name = pages.chunk.name
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, read_dictionary=[name]) as file:
            batches = file.iter_batches(
                limit, row_groups=[group], columns=[name], use_threads=False
            )
            for batch in batches:  # Pages that look up come first.
                values = pick(batch, column)[:left]
                sizes = pc.binary_length(values.dictionary).take(values.indices)
                num_bytes += pc.sum(sizes).as_py() or 0
                left -= len(values)
                if not left:
                    break
    except (OSError, pa.ArrowException):
        # Arrow keeps the dictionary of most encodings. What is damaged, reading it will tell.
        num_bytes += left * pages.dictionary.num_bytes // max(pages.dictionary.num_rows, 1)
    return num_bytes


def _sample(file: pq.ParquetFile, path: Path, group: int, column: Column) -> int:
    """Estimate a column's text in a row group from its first rows."""
    batches = read_batches(file, path, range(group, group + 1), [column], _SAMPLED_ROWS)
    batch = next(batches, None)
    if batch is None:
        return 0
    num_rows = file.metadata.row_group(group).num_rows
    return int(pick(batch, column).nbytes * num_rows / len(batch))


def read_batches(
    file: pq.ParquetFile, path: Path, groups: range, columns: Sequence[Column], max_rows: int
) -> Iterator[pa.RecordBatch]:
    """Read the row groups, as many rows at a time as memory allows."""
    names = list(dict.fromkeys(".".join(column) for column in columns))
    with open(path, "rb") as source:
        limits = []
        for group, chunks in zip(groups, find_chunks(file, path, groups, columns), strict=True):
            limit, budget = max_rows, _DECODED_BYTES // max(len(chunks), 1)
            for chunk in chunks:
                pages = read_pages(source, path, chunk)
                # How many values a list has is known on average alone.
                per_row = max(chunk.num_rows / max(file.metadata.row_group(group).num_rows, 1), 1)
                most = choose_rows(source, pages, math.ceil(limit * per_row), budget)
                limit = max(min(limit, int(most / per_row)), 1)
            limits.append((group, limit))
    for num_rows, run in groupby(limits, key=lambda entry: entry[1]):
        together = [group for group, _ in run]
        expected = sum(file.metadata.row_group(group).num_rows for group in together)
        for batch in file.iter_batches(
            num_rows, row_groups=together, columns=names, use_threads=False
        ):
            expected -= len(batch)
            if len(batch):
                yield batch
            del batch  # A large one is not held while the next one is decoded.
        if expected:
            raise PageError(f"it has {-expected:+,} rows compared with its footer")
