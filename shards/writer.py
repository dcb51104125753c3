"""Writes tokens and their documents to train-00000.bin and train-00000.docs.parquet.

Files are written to a temporary folder and renamed by `commit_shards`, so a name in the set's
folder always means a whole file. How documents are batched does not change a byte.
"""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.disk.durable import hash_file, naming, open_new, sync_file, sync_folder
from shards.format import Int64, Shard
from shards.sidecar import BlockChecksums, SidecarWriter, count_loss, count_tokens, is_padding
from shards.widths import Tokens


@dataclass(frozen=True)
class WrittenShard:
    """A shard whose two files are whole and durable, still under temporary names."""

    shard: Shard
    sidecar_sha256: str
    folder: Path


class ShardWriter:
    """Writes one split of one unit; starts a new file when the next document would not fit.

    `stem` is the unit's, such as train-00012. The first file has that name; if the unit holds more
    than `shard_tokens`, the next ones are train-00012-001, ... A document is never cut: one longer
    than `shard_tokens` gets a file of its own. With `row_tokens`, documents lie in rows of so many
    (shards/packing/writer.py), and no file ends inside a row.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        stem: str,
        shard_tokens: int,
        token_bytes: int,
        row_tokens: int | None = None,
    ) -> None:
        self.folder = folder
        self.split = split
        self.stem = stem
        self.shard_tokens = shard_tokens
        self.token_bytes = token_bytes
        self.row_tokens = row_tokens
        self.written: list[WrittenShard] = []
        self.open_file: OpenShard | None = None

    def append(self, tokens: Tokens, rows: pa.RecordBatch) -> None:
        """Add whole documents: one of `rows` (of ROWS_SCHEMA) each, in the order of `tokens`."""
        ends = np.cumsum(count_tokens(rows))
        assert len(tokens) == (ends[-1] if len(ends) else 0)
        # After how many documents a file may end, and after how many tokens that is.
        counts = np.arange(1, len(ends) + 1)
        if self.row_tokens is not None:
            counts = counts[ends % self.row_tokens == 0]
            assert len(tokens) % self.row_tokens == 0
        stops = ends[counts - 1]
        place, document, position = 0, 0, 0
        while place < len(stops):
            file = self._file_with_room_for(int(stops[place]) - position, rows.schema)
            room = self.shard_tokens - file.num_tokens
            last = int(np.searchsorted(stops, position + room, side="right"))
            last = max(last, place + 1)  # A document over the limit still goes in whole.
            count, stop = int(counts[last - 1]), int(stops[last - 1])
            file.append(tokens[position:stop], rows.slice(document, count - document))
            place, document, position = last, count, stop

    def finish(self) -> list[WrittenShard]:
        """Close the last file and return the shards, in order; none if there were no documents."""
        self._close_file()
        return self.written

    def close(self) -> None:
        """Close a file that will not be finished; nothing to do after `finish`."""
        if self.open_file is not None:
            self.open_file.abandon()
            self.open_file = None

    def _file_with_room_for(self, num_tokens: int, schema: pa.Schema) -> "OpenShard":
        file = self.open_file
        if file and file.num_tokens and file.num_tokens + num_tokens > self.shard_tokens:
            self._close_file()
        if self.open_file is None:
            suffix = f"-{len(self.written):03d}" if self.written else ""
            name = f"{self.stem}{suffix}.bin"
            shard = Shard(self.split, name, 0, 0, "", self.token_bytes, self.row_tokens)
            self.open_file = OpenShard(self.folder, shard, schema)
        return self.open_file

    def _close_file(self) -> None:
        if self.open_file is not None:
            self.written.append(self.open_file.close())
            self.open_file = None


class OpenShard:
    """A .bin and its sidecar while they are being written."""

    def __init__(self, folder: Path, shard: Shard, schema: pa.Schema) -> None:
        self.folder = folder
        self.shard = shard
        self.sha256 = hashlib.sha256()
        self.blocks = BlockChecksums()
        self.path = folder / shard.name
        self.tokens_file = open_new(self.path)
        self.sidecar = SidecarWriter(folder / self.shard.sidecar, schema)
        self.num_paddings = self.padding_tokens = self.num_cut = 0
        self.loss_tokens: int | None = None

    @property
    def num_tokens(self) -> int:
        """The number of tokens added so far."""
        return self.sidecar.num_tokens

    def append(self, tokens: Tokens, rows: pa.RecordBatch) -> None:
        """Add the next documents: their tokens, and their rows (of ROWS_SCHEMA)."""
        assert tokens.dtype == self.shard.dtype
        content = np.ascontiguousarray(tokens).data.cast("B")
        with naming(self.path):
            self.tokens_file.write(content)
        self.sha256.update(content)
        self.blocks.update(content)
        with naming(self.sidecar.path):
            self.sidecar.append(rows)
        if (count := count_loss(rows)) is not None:
            self.loss_tokens = (self.loss_tokens or 0) + count
        if self.shard.row_tokens is not None:
            sizes, padding = count_tokens(rows), is_padding(rows)
            self.num_paddings += int(padding.sum())
            self.padding_tokens += int(sizes[padding].sum())
            self.num_cut += int((sizes[~padding] > self.shard.row_tokens).sum())

    def close(self) -> WrittenShard:
        """Finish both files and make them durable."""
        with naming(self.sidecar.path):
            self.sidecar.close(self.blocks.finish())
        with naming(self.path):
            sync_file(self.tokens_file)
            self.tokens_file.close()
        shard = replace(
            self.shard,
            num_tokens=self.sidecar.num_tokens,
            num_documents=self.sidecar.num_documents - self.num_paddings,
            num_paddings=self.num_paddings,
            padding_tokens=self.padding_tokens,
            num_cut=self.num_cut,
            loss_tokens=self.loss_tokens,
            sha256=self.sha256.hexdigest(),
        )
        return WrittenShard(shard, hash_file(self.sidecar.path), self.folder)

    def abandon(self) -> None:
        """Close both files unfinished; an OSError no longer matters."""
        with suppress(OSError):
            self.tokens_file.close()
        self.sidecar.abandon()


def join_runs(tokens: Tokens, ends: Int64, chosen: npt.NDArray[np.bool_]) -> Tokens:
    """The tokens of the chosen documents, which end at `ends`; adjacent ones are copied at once."""
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
