"""The rows of a sidecar: read and checked, so that no code has to doubt what it gets.

This is the one door for sidecars. A row that comes through it has the columns of SIDECAR_SCHEMA, of
their types and without nulls but in `url`, its tokens lie within the shard, and the rows together
are all of the shard's. A sidecar from elsewhere may be anything, and small files may decode to a
lot: what is decoded is bounded as well.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.format import Int64, Shard
from shards.screen.names import advise_verify
from shards.sidecar import (
    BLOCK_BYTES,
    BLOCK_CHECKSUMS,
    CHAT_COLUMNS,
    LOSS_SPANS,
    ROW_GROUP_DOCUMENTS,
    SIDECAR_SCHEMA,
    count_tokens,
)

# What parquet calls text of any length.
TEXT = "BYTE_ARRAY"
NO_NULLS = {name for name in SIDECAR_SCHEMA.names if name != "url"}
# What the texts of a row group may take once they are decoded: 16 KB a document.
MAX_TEXT_BYTES = 1 << 30


def read_rows(
    folder: Path,
    shard: Shard,
    columns: Sequence[str],
    read_dictionary: Sequence[str] = (),
    groups: Sequence[int] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Some columns of a shard's rows, in order, at most ROW_GROUP_DOCUMENTS rows at a time.

    Those of all row groups, or of the ascending `groups`. Columns with few distinct values may be
    read as dictionaries. Raises SidecarError where the rows cannot be those of the shard.
    """
    with open_sidecar(folder, shard, read_dictionary) as file:
        chosen = range(file.num_row_groups) if groups is None else groups
        check_columns(folder, shard, file.schema_arrow, columns)
        check_spans(folder, shard, file, columns)
        check_texts(folder, shard, file, columns, chosen)
        num_rows, num_tokens = 0, 0
        for batch in read_batches(folder, shard, file, columns, chosen):
            fault = find_fault(batch, shard, num_tokens if groups is None else None)
            if fault:
                raise SidecarError(folder, shard, fault)
            num_rows += len(batch)
            num_tokens += int(count_tokens(batch).sum()) if "num_tokens" in columns else 0
            yield batch.select(columns)
    if groups is None:
        check_totals(folder, shard, num_rows, num_tokens if "num_tokens" in columns else None)


def take_rows(folder: Path, shard: Shard, rows: Int64) -> pa.Table:
    """The rows with these numbers, ascending, of SIDECAR_SCHEMA; only their row groups are read."""
    with open_sidecar(folder, shard) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    groups = np.searchsorted(starts, rows, side="right") - 1
    taken = []
    for group in np.unique(groups).tolist():
        batches = read_rows(folder, shard, SIDECAR_SCHEMA.names, groups=[group])
        table = pa.Table.from_batches(batches, SIDECAR_SCHEMA)
        taken.append(table.take(pa.array(rows[groups == group] - starts[group])))
    return pa.concat_tables([SIDECAR_SCHEMA.empty_table(), *taken])


def list_columns(folder: Path, shard: Shard) -> list[str]:
    """The columns of a shard's sidecar, those that prep kept of the source too."""
    with open_sidecar(folder, shard) as file:
        return list(file.schema_arrow.names)


def find_groups(folder: Path, shard: Shard, start: int, stop: int) -> list[int]:
    """The row groups that may hold documents with tokens in [start, stop) of their shard."""
    with open_sidecar(folder, shard) as file:
        groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    found = [find_chunk(group, "start").statistics for group in groups]
    first = [statistics.min for statistics in found if statistics and statistics.has_min_max]
    if first != sorted(first) or len(first) < len(groups):
        return list(range(len(groups)))  # No help: all of them may.
    low = max(int(np.searchsorted(first, max(start, 0), side="right")) - 1, 0)
    high = int(np.searchsorted(first, stop, side="left"))
    return list(range(low, high))


def read_block_checksums(folder: Path, shard: Shard) -> list[int]:
    """The crc32 of each MiB of a shard's .bin, taken when it was written; none if they are lost."""
    with open_sidecar(folder, shard) as file:
        digits = (file.metadata.metadata or {}).get(BLOCK_CHECKSUMS, b"").decode("ascii", "replace")
    num_blocks = -(-shard.num_bytes // BLOCK_BYTES)
    if not re.fullmatch(f"[0-9a-f]{{{8 * num_blocks}}}", digits):
        return []
    return [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]


@contextmanager
def open_sidecar(
    folder: Path, shard: Shard, read_dictionary: Sequence[str] = ()
) -> Iterator[pq.ParquetFile]:
    """Open a shard's sidecar; SidecarError if it is missing, or is not one of this shard."""
    path = folder / shard.sidecar
    if not path.is_file():
        raise SidecarError(folder, shard, "is missing")
    with telling(folder, shard):
        metadata = pq.read_metadata(path)
        fault = find_wrong_column(metadata.schema.to_arrow_schema()) or find_wrong_group(metadata)
    if fault:
        raise SidecarError(folder, shard, fault)
    check_totals(folder, shard, metadata.num_rows, None)
    with telling(folder, shard):
        file = pq.ParquetFile(path, metadata=metadata, read_dictionary=list(read_dictionary))
    with file:
        yield file


class SidecarError(ValueError):
    """A sidecar that is not what its shard needs; `fault` says so without its name."""

    def __init__(self, folder: Path, shard: Shard, fault: str) -> None:
        super().__init__(f"{folder / shard.sidecar}: {fault}; {advise_verify(folder)}")
        self.fault = fault


@contextmanager
def telling(folder: Path, shard: Shard) -> Iterator[None]:
    """Name the sidecar in the errors of whoever reads it as parquet."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())  # Arrow's may have several lines.
        raise SidecarError(folder, shard, f"cannot be read as parquet ({reason})") from None


def find_wrong_column(schema: pa.Schema) -> str | None:
    """Which column of a sidecar is missing or of another type, in words; None if all are right."""
    for field in SIDECAR_SCHEMA:
        places = schema.get_all_field_indices(field.name)
        if len(places) != 1:
            state = "is missing" if not places else "is there twice"
            return f"its column {field.name} {state}"
        found = schema.field(places[0]).type
        if found != field.type:
            return f"its column {field.name} holds {found}; expected {field.type}"
    return None


def find_wrong_group(metadata: pq.FileMetaData) -> str | None:
    """Which column has nulls, or more than can be read, as the footer says; None if none has."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            name, found = chunk.path_in_schema, chunk.statistics
            if chunk.total_uncompressed_size > MAX_TEXT_BYTES:
                return f"its column {name} has {chunk.total_uncompressed_size:,} bytes in one group"
            if chunk.physical_type == TEXT and "DELTA_BYTE_ARRAY" in chunk.encodings:
                return f"its column {name} is encoded as DELTA_BYTE_ARRAY, which no sidecar is"
            if name in NO_NULLS and found and found.has_null_count and found.null_count:
                return f"its column {name} has {found.null_count:,} nulls; expected none"
    return None


def check_columns(folder: Path, shard: Shard, schema: pa.Schema, columns: Sequence[str]) -> None:
    """ValueError if a sidecar lacks one of these columns, or has it twice or in parts."""
    for name in columns:
        places = schema.get_all_field_indices(name)
        if name in CHAT_COLUMNS:
            check_chat_column(folder, shard, schema, name)
        elif len(places) != 1 or pa.types.is_nested(schema.field(places[0]).type):
            others = [found for found in schema.names if found not in ("start", "doc_hash")]
            raise ValueError(
                f"{folder / shard.sidecar}: has no column {name!r:.60}; those that a condition can "
                f"name are {', '.join(others)}"
            )


def check_chat_column(folder: Path, shard: Shard, schema: pa.Schema, name: str) -> None:
    """SidecarError if the sidecar of chats has not this column, of its type."""
    expected, places = CHAT_COLUMNS[name], schema.get_all_field_indices(name)
    found = schema.field(places[0]).type if len(places) == 1 else None
    if found is not None and pa.types.is_list(found):
        found = pa.list_(found.value_type)  # Whatever its values are called.
    if found != expected:
        raise SidecarError(folder, shard, f"has no column {name} of {expected}, as chats have")


def check_spans(folder: Path, shard: Shard, file: pq.ParquetFile, columns: Sequence[str]) -> None:
    """SidecarError for more edges of spans than tokens: a small file may decode to many."""
    if LOSS_SPANS not in columns:
        return
    groups = map(file.metadata.row_group, range(file.num_row_groups))
    num_edges = sum(find_chunk(group, LOSS_SPANS).num_values for group in groups)
    if num_edges > 2 * shard.num_tokens + shard.num_rows:
        raise SidecarError(
            folder, shard, f"its column {LOSS_SPANS} has {num_edges:,} values for fewer tokens"
        )


def find_chunk(group: pq.RowGroupMetaData, name: str) -> pq.ColumnChunkMetaData:
    """A column of a row group, as the footer describes it."""
    chunks = map(group.column, range(group.num_columns))
    paths = (name, f"{name}.list.element", f"{name}.list.item")
    return next(chunk for chunk in chunks if chunk.path_in_schema in paths)


def check_texts(
    folder: Path, shard: Shard, file: pq.ParquetFile, columns: Sequence[str], groups: Sequence[int]
) -> None:
    """SidecarError if a row group holds texts that take more than MAX_TEXT_BYTES once decoded.

    A text that many rows share is stored once, so the size of a file says nothing.
    """
    for name in columns:
        for place in groups:
            group = file.metadata.row_group(place)
            if find_chunk(group, name).physical_type != TEXT:
                break
            if group.num_rows * find_chunk(group, name).total_uncompressed_size <= MAX_TEXT_BYTES:
                continue
            with telling(folder, shard):
                num_bytes = measure_texts(folder / shard.sidecar, name, place, group.num_rows)
            if num_bytes > MAX_TEXT_BYTES:
                raise SidecarError(
                    folder,
                    shard,
                    f"its column {name} decodes to {num_bytes:,} bytes in {group.num_rows:,} rows; "
                    f"expected at most {MAX_TEXT_BYTES:,}",
                )


def measure_texts(path: Path, name: str, group: int, num_rows: int) -> int:
    """The bytes of a row group's texts once decoded; if they are few, at most so many."""
    with pq.ParquetFile(path, read_dictionary=[name]) as file:
        # The whole dictionary comes with the first row.
        first = next(file.iter_batches(1, row_groups=[group], columns=[name])).column(0)
        longest: int = pc.max(pc.binary_length(first.dictionary)).as_py() or 0
        if longest * num_rows <= MAX_TEXT_BYTES:
            return longest * num_rows
        total = 0
        for batch in file.iter_batches(ROW_GROUP_DOCUMENTS, row_groups=[group], columns=[name]):
            lengths = pc.binary_length(batch.column(0).dictionary).cast(pa.int64())
            total += pc.sum(lengths.take(batch.column(0).indices)).as_py() or 0
        return total


def read_batches(
    folder: Path, shard: Shard, file: pq.ParquetFile, columns: Sequence[str], groups: Sequence[int]
) -> Iterator[pa.RecordBatch]:
    """The batches of some columns and row groups; SidecarError if they cannot be read."""
    batches = file.iter_batches(ROW_GROUP_DOCUMENTS, row_groups=list(groups), columns=list(columns))
    while True:
        with telling(folder, shard):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def find_fault(batch: pa.RecordBatch, shard: Shard, position: int | None) -> str | None:
    """What is wrong with a shard's rows, the first of which begins at `position`, if it is known.

    Whatever their sums are later, they stay within the shard.
    """
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    for name in columns.keys() & NO_NULLS:
        if columns[name].null_count:
            return f"its column {name} has nulls; expected none"
    for name in columns.keys() & {"start", "num_tokens"}:
        largest = pc.max(columns[name]).as_py() or 0
        if largest > shard.num_tokens:
            return f"its column {name} has {largest:,}; the shard has {shard.num_tokens:,} tokens"
    if "num_tokens" not in columns:
        return None
    sizes = count_tokens(batch)
    if len(sizes) and sizes.min() < 1:
        return "its column num_tokens has a 0; expected at least 1, the end-of-document token"
    if "start" in columns and len(batch):
        starts = columns["start"].to_numpy().astype(np.int64)
        ends = starts + sizes
        begins_there = position is None or starts[0] == position
        if not begins_there or (starts[1:] != ends[:-1]).any() or ends[-1] > shard.num_tokens:
            return "its documents are not back to back (columns start and num_tokens)"
    if position is not None and position + int(sizes.sum()) > shard.num_tokens:
        return f"its documents have more than the shard's {shard.num_tokens:,} tokens"
    return None


def check_totals(folder: Path, shard: Shard, num_rows: int, num_tokens: int | None) -> None:
    """SidecarError if a sidecar has not the shard's documents, or tokens if they were counted."""
    right = num_tokens in (None, shard.num_tokens)
    if num_rows != shard.num_rows or not right:
        what = "documents" if shard.row_tokens is None else "documents and paddings"
        tokens = "" if num_tokens is None else f" of {num_tokens:,} tokens"
        raise SidecarError(
            folder,
            shard,
            f"has {num_rows:,} {what}{tokens}; "
            f"expected {shard.num_rows:,} of {shard.num_tokens:,} tokens",
        )
