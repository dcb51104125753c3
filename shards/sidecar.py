"""A .bin's sidecar, train-00000.docs.parquet: its columns and writer; a row per document.

To add a column, add it here (SIDECAR_SCHEMA, make_rows, and BLANK_VALUES if it reveals anything
of the text) and fill it where documents come from: prep/text/batch.py and prep/foreign/run.py.
Sidecars that exist lack the column, so shards/rows.py must then fill it in.
"""

import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.disk.durable import sync_file
from shards.format import Int64

Marks = npt.NDArray[np.bool_]
# Halves of doc_hashes.
Keys = npt.NDArray[np.uint64]

HASH_BYTES = 16
SIDECAR_SCHEMA = pa.schema(
    [
        ("start", pa.uint64()),  # in tokens, from the beginning of this .bin
        ("num_tokens", pa.uint64()),  # the end-of-document token included
        ("source_file", pa.string()),
        ("source_row", pa.uint64()),
        ("url", pa.string()),
        ("doc_hash", pa.binary(HASH_BYTES)),  # the first half of the sha256 of the text's UTF-8
    ]
)
# What the writer is given for each document: everything but where its tokens will be.
ROWS_SCHEMA = SIDECAR_SCHEMA.remove(0)
# What the sidecar of a set of chats has besides: which tokens are trained on, as begin, end, begin,
# end, ... (half open, ascending, from the document's first token on), and of a pair of which one is
# preferred, where the rejected one begins. Null for padding, and for what was removed.
LOSS_SPANS, REJECTED_START = "loss_spans", "rejected_start"
CHAT_COLUMNS = {LOSS_SPANS: pa.list_(pa.uint32()), REJECTED_START: pa.uint32()}
# What these columns hold for a removed document whose tokens kept their places.
BLANK_HASH = bytes(HASH_BYTES)
BLANK_VALUES = {"url": None, "doc_hash": BLANK_HASH, **dict.fromkeys(CHAT_COLUMNS)}
# What a row of padding has in place of a source's path, in a packed set.
NO_SOURCE = ""
# Rows per row group: what trace reads to find one document. Also the unit of writing, so that
# the file's bytes do not depend on how the documents were batched.
ROW_GROUP_DOCUMENTS = 65_536
# The sidecar's metadata has a checksum for each MiB of the .bin, so verify can locate damage.
BLOCK_BYTES = 1 << 20
BLOCK_CHECKSUMS = b"crc32_per_mib"


def make_rows(
    sizes: Int64,
    source_files: pa.Array,
    source_rows: Int64,
    urls: pa.Array,
    hashes: bytes,
    kept: Mapping[str, pa.Array] = MappingProxyType({}),
) -> pa.RecordBatch:
    """Rows (of ROWS_SCHEMA) for documents; `sizes` include the tokens around each.

    The columns that prep --keep-column kept come after those of every sidecar.
    """
    columns = [
        pa.array(sizes.astype(np.uint64)),
        source_files,
        pa.array(source_rows.astype(np.uint64)),
        urls,
        pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(HASH_BYTES), len(sizes), [None, pa.py_buffer(hashes)]
        ),
    ]
    schema = ROWS_SCHEMA
    for name, values in kept.items():
        columns.append(values)
        schema = schema.append(pa.field(name, values.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def blank_rows(rows: pa.RecordBatch, chosen: Marks) -> pa.RecordBatch:
    """The same rows, with the chosen ones blanked as removed documents are.

    Of the columns that were kept, text goes, as it may name somebody; numbers stay, so that a run
    on the documents that they choose can go on.
    """
    mask = pa.array(chosen)
    columns = []
    for field, column in zip(rows.schema, rows.columns, strict=True):
        is_kept_text = field.name not in ROWS_SCHEMA.names and pa.types.is_string(field.type)
        if field.name in BLANK_VALUES or is_kept_text:
            blank = pa.scalar(BLANK_VALUES.get(field.name), column.type)
            column = pc.if_else(mask, blank, column)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)


def is_blank(doc_hashes: pa.Array) -> Marks:
    """Which documents were removed but still take up their places, by their doc_hash column."""
    first, rest = split_hashes(doc_hashes)
    marks: Marks = (first == 0) & (rest == 0)
    return marks


def make_padding(sizes: Int64, schema: pa.Schema = ROWS_SCHEMA) -> pa.RecordBatch:
    """Rows (of `schema`) for padding, in a packed set: of no source, and otherwise blank."""
    count = len(sizes)
    sources = pa.array([NO_SOURCE] * count, pa.string())
    no_rows, no_urls = np.zeros(count, np.int64), pa.nulls(count, pa.string())
    kept = {f.name: pa.nulls(count, f.type) for f in schema if f.name not in ROWS_SCHEMA.names}
    return make_rows(sizes, sources, no_rows, no_urls, BLANK_HASH * count, kept)


def is_padding(rows: pa.RecordBatch) -> Marks:
    """Which rows are padding, by their source_file column."""
    marks = pc.equal(rows.column("source_file"), NO_SOURCE)
    return np.asarray(marks.to_numpy(zero_copy_only=False))


def split_hashes(doc_hashes: pa.Array) -> tuple[Keys, Keys]:
    """Both halves of each doc_hash, as two arrays of 64-bit numbers that share its memory."""
    halves = np.frombuffer(doc_hashes.buffers()[1], np.uint64)
    halves = halves[2 * doc_hashes.offset :][: 2 * len(doc_hashes)]
    return halves[::2], halves[1::2]


def count_tokens(rows: pa.RecordBatch) -> Int64:
    """The tokens of each document, that which ends it included."""
    sizes: Int64 = rows.column("num_tokens").to_numpy().astype(np.int64)
    return sizes


def count_loss(rows: pa.RecordBatch) -> int | None:
    """The tokens of documents that are trained on; None if they are no chats."""
    if LOSS_SPANS not in rows.schema.names:
        return None
    edges = rows.column(LOSS_SPANS).flatten().to_numpy().astype(np.int64)
    return int((edges[1::2] - edges[::2]).sum())


class SidecarWriter:
    """A sidecar while it is being written, one whole row group at a time.

    `schema` is that of its rows: ROWS_SCHEMA, and the columns that were kept behind it.
    """

    def __init__(self, path: Path, schema: pa.Schema = ROWS_SCHEMA) -> None:
        self.path = path
        self.schema = schema.insert(0, SIDECAR_SCHEMA.field("start"))
        self.file = pq.ParquetWriter(path, self.schema, compression="zstd")
        self.num_tokens = 0
        self.num_documents = 0
        self.pending: list[pa.Table] = []
        self.num_pending = 0

    def append(self, rows: pa.RecordBatch) -> None:
        """Add the rows (of the writer's schema) of the next documents."""
        sizes = count_tokens(rows)
        starts = pa.array((self.num_tokens + np.cumsum(sizes) - sizes).astype(np.uint64))
        self.pending.append(pa.Table.from_arrays([starts, *rows.columns], schema=self.schema))
        self.num_pending += len(rows)
        self.num_tokens += int(sizes.sum())
        self.num_documents += len(rows)
        if self.num_pending >= ROW_GROUP_DOCUMENTS:
            self._write_rows(whole_groups_only=True)

    def close(self, checksums: str) -> None:
        """Write what is left, with the checksums of the .bin's blocks, and make it durable."""
        self._write_rows(whole_groups_only=False)
        self.file.add_key_value_metadata({BLOCK_CHECKSUMS: checksums})
        self.file.close()
        with open(self.path, "rb") as file:
            sync_file(file)

    def abandon(self) -> None:
        """Close the file unfinished; an OSError no longer matters."""
        with suppress(OSError):
            self.file.close()

    def _write_rows(self, whole_groups_only: bool) -> None:
        if not self.pending:
            return
        table = pa.concat_tables(self.pending)
        size = len(table)
        stop = size - size % ROW_GROUP_DOCUMENTS if whole_groups_only else size
        for start in range(0, stop, ROW_GROUP_DOCUMENTS):
            group = table.slice(start, min(ROW_GROUP_DOCUMENTS, stop - start))
            self.file.write_table(group.combine_chunks(), ROW_GROUP_DOCUMENTS)
        self.pending = [table.slice(stop)] if stop < size else []
        self.num_pending = size - stop


class BlockChecksums:
    """The crc32 of each MiB of a byte stream that arrives in pieces of any size."""

    def __init__(self) -> None:
        self.checksums: list[int] = []
        self.current = 0
        self.filled = 0

    def update(self, view: memoryview) -> None:
        """Add the next bytes of the stream."""
        while view:
            piece = view[: BLOCK_BYTES - self.filled]
            self.current = zlib.crc32(piece, self.current)
            self.filled += len(piece)
            view = view[len(piece) :]
            if self.filled == BLOCK_BYTES:
                self._end_block()

    def finish(self) -> str:
        """The checksums, eight hexadecimal digits each, back to back."""
        if self.filled:
            self._end_block()
        return "".join(f"{checksum:08x}" for checksum in self.checksums)

    def _end_block(self) -> None:
        self.checksums.append(self.current)
        self.current, self.filled = 0, 0
