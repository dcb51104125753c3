"""Rewrites a finished shard without some of its documents.

    cut      their tokens go, and what follows moves up
    blank    their tokens become end-of-document tokens, so every other token keeps its place

A blanked document keeps its row, without URL and hash, so that rows still cover the shard with no
gaps.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.disk.durable import hash_file
from shards.documents import read_pieces
from shards.format import Int64, Shard
from shards.packing.writer import Packing, Writer, make_writer
from shards.reader import make_damage_error
from shards.sidecar import blank_rows, count_tokens
from shards.tokenizer import Spelling
from shards.widths import Tokens
from shards.writer import ShardWriter, WrittenShard, join_runs

ONE_FILE = 1 << 62


@dataclass(frozen=True)
class Rewritten:
    """A rewritten shard, and what was taken out of it."""

    # None if no document is left.
    written: WrittenShard | None
    num_documents: int
    num_tokens: int
    # Of what the tokenizer decodes: of the very text, where the tokenizer loses nothing of it.
    text_bytes: int


def subtract_bytes(text_bytes: int, entry: Rewritten) -> int:
    """An audit's bytes of text without a shard's documents that were taken out.

    The audit counts the texts that were read, `entry` what their ids decode to. A tokenizer that
    lowercases, say, makes these two differ, and what is left an estimate; it is never below 0.
    """
    return max(text_bytes - entry.text_bytes, 0)


@dataclass(frozen=True)
class Rewriter:
    """Rewrites shards of the set in `folder` into `temporary`."""

    folder: Path
    temporary: Path
    spelling: Spelling
    keeps_places: bool
    # Pack documents into rows of so many tokens; None = they stay one after another.
    row_tokens: int | None = None

    def rewrite(
        self, shard: Shard, rows: Int64, name: str, sidecar_sha256: str | None
    ) -> Rewritten:
        """Write `shard` as `name` without the documents `rows` (numbers in the shard, ascending).

        Raises ValueError if the old shard is damaged, so that damage never gets a new checksum.
        """
        check_sidecar(self.folder, shard, sidecar_sha256)
        stem = name.removesuffix(".bin")
        writer = self._make_writer(shard, stem)
        sha256 = hashlib.sha256()
        num_tokens, text_bytes = 0, 0
        try:
            for first, tokens, batch in read_pieces(self.folder, shard):
                sha256.update(tokens.data)
                low, high = np.searchsorted(rows, (first, first + len(batch)))
                if low == high:
                    writer.append(tokens, batch)
                    continue
                is_removed = np.zeros(len(batch), np.bool_)
                is_removed[rows[low:high] - first] = True
                ends = np.cumsum(count_tokens(batch))
                taken = join_runs(tokens, ends, is_removed)
                num_tokens += len(taken)
                text_bytes += self._count_bytes(shard, taken, count_tokens(batch)[is_removed])
                if self.keeps_places:
                    writer.append(*blank(tokens, batch, is_removed, self.spelling.end_of_text))
                else:
                    kept = ~is_removed
                    writer.append(join_runs(tokens, ends, kept), batch.filter(pa.array(kept)))
            if sha256.hexdigest() != shard.sha256:
                raise make_damage_error(self.folder, shard.name)
            written = writer.finish()
        finally:
            writer.close()
        return Rewritten(written[0] if written else None, len(rows), num_tokens, text_bytes)

    def _make_writer(self, shard: Shard, stem: str) -> Writer:
        """What writes the new shard: packed anew, unless all that stays keeps its place."""
        if self.keeps_places:
            folder, token_bytes = self.temporary, shard.token_bytes
            return ShardWriter(folder, shard.split, stem, ONE_FILE, token_bytes, shard.row_tokens)
        packing = Packing(self.row_tokens, self.spelling.end_of_text) if self.row_tokens else None
        return make_writer(self.temporary, shard.split, stem, ONE_FILE, shard.token_bytes, packing)

    def _count_bytes(self, shard: Shard, tokens: Tokens, sizes: Int64) -> int:
        """The bytes of text of some documents; ValueError for ids that no tokenizer has."""
        num_ids = len(self.spelling.inner)
        if tokens.max(initial=0) >= num_ids:
            raise make_damage_error(self.folder, shard.name)
        return self.spelling.count_bytes(tokens, sizes, np.bincount(tokens, minlength=num_ids))


def blank(
    tokens: Tokens, rows: pa.RecordBatch, chosen: npt.NDArray[np.bool_], end_of_text: int
) -> tuple[Tokens, pa.RecordBatch]:
    """The same, but the chosen documents are all end-of-document tokens and their rows blank."""
    blanked = np.where(
        np.repeat(chosen, count_tokens(rows)), tokens.dtype.type(end_of_text), tokens
    )
    return blanked, blank_rows(rows, chosen)


def check_sidecar(folder: Path, shard: Shard, sha256: str | None) -> None:
    """ValueError if a shard's sidecar is missing or not the one that was written."""
    path = folder / shard.sidecar
    if not path.is_file() or (sha256 is not None and hash_file(path) != sha256):
        raise make_damage_error(folder, shard.sidecar)
