"""Tokens and their documents -> train-00000.bin and train-00000.docs.parquet.

Files are written in a temporary folder and renamed by `commit_shards`, so a name in the set's
folder always means a whole file. How documents are dealt to batches does not change a byte.
"""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.disk.durable import hash_file, sync_folder
from shards.format import Shard, Tokens
from shards.sidecar import (
    BLOCK_CHECKSUMS,
    ROW_GROUP_DOCUMENTS,
    SIDECAR_SCHEMA,
    BlockChecksums,
    count_tokens,
)


@dataclass(frozen=True)
class WrittenShard:
    """A shard whose two files are whole and durable, still under temporary names."""

    shard: Shard
    sidecar_sha256: str
    folder: Path


class ShardWriter:
    """Writes one split of one unit; starts another file when the next document would not fit.

    `stem` is the unit's, such as train-00012. The first file has that name; those that follow
    where a unit holds more than `shard_tokens` are train-00012-001, ... A document is never cut:
    one that is longer than `shard_tokens` has a file of its own.
    """

    def __init__(self, folder: Path, split: str, stem: str, shard_tokens: int) -> None:
        self.folder = folder
        self.split = split
        self.stem = stem
        self.shard_tokens = shard_tokens
        self.written: list[WrittenShard] = []
        self.open_file: OpenShard | None = None

    def append(self, tokens: Tokens, rows: pa.RecordBatch) -> None:
        """Add whole documents, one of `rows` (of ROWS_SCHEMA) each, in the order of `tokens`."""
        ends = np.cumsum(count_tokens(rows))
        assert len(tokens) == (ends[-1] if len(ends) else 0)
        document, position = 0, 0
        while document < len(ends):
            file = self._file_with_room_for(int(ends[document]) - position)
            room = self.shard_tokens - file.num_tokens
            last = int(np.searchsorted(ends, position + room, side="right"))
            last = max(last, document + 1)  # A document over the limit still goes in whole.
            stop = int(ends[last - 1])
            file.append(tokens[position:stop], rows.slice(document, last - document))
            document, position = last, stop

    def finish(self) -> list[WrittenShard]:
        """Close the last file; the shards written, in order. No documents: no shard."""
        self._close_file()
        return self.written

    def close(self) -> None:
        """Let go of a file that will not be finished."""
        if self.open_file is not None:
            self.open_file.abandon()
            self.open_file = None

    def _file_with_room_for(self, num_tokens: int) -> "OpenShard":
        file = self.open_file
        if file and file.num_tokens and file.num_tokens + num_tokens > self.shard_tokens:
            self._close_file()
        if self.open_file is None:
            suffix = f"-{len(self.written):03d}" if self.written else ""
            self.open_file = OpenShard(self.folder, self.split, f"{self.stem}{suffix}.bin")
        return self.open_file

    def _close_file(self) -> None:
        if self.open_file is not None:
            self.written.append(self.open_file.close())
            self.open_file = None


class OpenShard:
    """A .bin and its sidecar while they are being written."""

    def __init__(self, folder: Path, split: str, name: str) -> None:
        self.folder = folder
        self.shard = Shard(split, name, 0, 0, "")
        self.num_tokens = 0
        self.num_documents = 0
        self.sha256 = hashlib.sha256()
        self.blocks = BlockChecksums()
        self.tokens_file = open(folder / name, "wb")  # noqa: SIM115 - closed by close()
        self.sidecar_file = pq.ParquetWriter(
            folder / self.shard.sidecar, SIDECAR_SCHEMA, compression="zstd"
        )
        self.pending: list[pa.Table] = []
        self.num_pending = 0

    def append(self, tokens: Tokens, rows: pa.RecordBatch) -> None:
        """Add documents' tokens and rows."""
        content = np.ascontiguousarray(tokens, "<u2").data.cast("B")
        self.tokens_file.write(content)
        self.sha256.update(content)
        self.blocks.update(content)
        sizes = count_tokens(rows)
        starts = pa.array((self.num_tokens + np.cumsum(sizes) - sizes).astype(np.uint64))
        self.pending.append(pa.Table.from_arrays([starts, *rows.columns], schema=SIDECAR_SCHEMA))
        self.num_pending += len(rows)
        self.num_tokens += len(tokens)
        self.num_documents += len(rows)
        if self.num_pending >= ROW_GROUP_DOCUMENTS:
            self._write_rows(whole_groups_only=True)

    def close(self) -> WrittenShard:
        """Flush both files to the disk."""
        self._write_rows(whole_groups_only=False)
        metadata = {BLOCK_CHECKSUMS: self.blocks.finish()}
        self.sidecar_file.add_key_value_metadata(metadata)
        self.sidecar_file.close()
        self.tokens_file.flush()
        os.fsync(self.tokens_file.fileno())
        self.tokens_file.close()
        sidecar = self.folder / self.shard.sidecar
        with open(sidecar, "rb") as file:
            os.fsync(file.fileno())
        shard = Shard(
            self.shard.split,
            self.shard.name,
            self.num_tokens,
            self.num_documents,
            self.sha256.hexdigest(),
        )
        return WrittenShard(shard, hash_file(sidecar), self.folder)

    def abandon(self) -> None:
        """Close both files as they are."""
        with suppress(OSError):
            self.tokens_file.close()
        with suppress(OSError):
            self.sidecar_file.close()

    def _write_rows(self, whole_groups_only: bool) -> None:
        if not self.pending:
            return
        table = pa.concat_tables(self.pending)
        size = len(table)
        stop = size - size % ROW_GROUP_DOCUMENTS if whole_groups_only else size
        for start in range(0, stop, ROW_GROUP_DOCUMENTS):
            group = table.slice(start, min(ROW_GROUP_DOCUMENTS, stop - start))
            self.sidecar_file.write_table(group.combine_chunks(), ROW_GROUP_DOCUMENTS)
        self.pending = [table.slice(stop)] if stop < size else []
        self.num_pending = size - stop


def join_runs(tokens: Tokens, ends: npt.NDArray[np.int64], chosen: npt.NDArray[np.bool_]) -> Tokens:
    """The tokens of the chosen documents, which end at `ends`; neighbours are copied in one go."""
    if chosen.all():
        return tokens
    edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
    places = np.append(0, ends)[edges].tolist()
    pieces = [tokens[a:b] for a, b in zip(places[::2], places[1::2], strict=True)]
    return np.concatenate(pieces) if pieces else tokens[:0]


def commit_shards(written: list[WrittenShard], folder: Path) -> None:
    """Rename written shards into the set's folder, sidecars first, and make it durable."""
    for entry in written:
        for name in (entry.shard.sidecar, entry.shard.name):
            os.replace(entry.folder / name, folder / name)
    sync_folder(folder)
