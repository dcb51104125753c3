"""Writes documents as packed rows: a buffer of them at a time, so that memory stays bounded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from shards.packing.best_fit import PADDING, pack
from shards.sidecar import count_tokens, is_padding, make_padding
from shards.widths import Tokens
from shards.writer import ShardWriter, WrittenShard

# Documents are packed with those of a buffer, of about so many tokens, and so many rows at least.
BUFFER_TOKENS = 1 << 23
BUFFER_ROWS = 64


@dataclass(frozen=True)
class Packing:
    """How documents are packed: the tokens of a row, and what stands in a place that is free."""

    row_tokens: int
    end_of_text: int


class Writer(Protocol):
    """What documents are given to, batch by batch, and what then has their shards."""

    def append(self, tokens: Tokens, rows: pa.RecordBatch) -> None:
        """Add whole documents: one of `rows` (of ROWS_SCHEMA) each, in the order of `tokens`."""

    def finish(self) -> list[WrittenShard]:
        """The shards, whole, in order; none if there were no documents."""

    def close(self) -> None:
        """Close what will not be finished; nothing to do after `finish`."""


def make_writer(
    folder: Path,
    split: str,
    stem: str,
    shard_tokens: int,
    token_bytes: int,
    packing: Packing | None,
) -> Writer:
    """What writes one split of one unit (see ShardWriter): packed, or as it comes."""
    if packing is None:
        return ShardWriter(folder, split, stem, shard_tokens, token_bytes)
    writer = ShardWriter(folder, split, stem, shard_tokens, token_bytes, packing.row_tokens)
    return PackedWriter(writer, packing)


class PackedWriter:
    """Writes documents as rows that are padded with end tokens, to a ShardWriter of such rows.

    What is in a buffer depends on the documents alone, however they are batched. Padding that it is
    given is left out.
    """

    def __init__(self, writer: ShardWriter, packing: Packing) -> None:
        self.writer = writer
        self.packing = packing
        self.max_tokens = max(BUFFER_TOKENS, BUFFER_ROWS * packing.row_tokens)
        self.tokens: list[Tokens] = []
        self.rows: list[pa.RecordBatch] = []
        self.num_buffered = 0
        self.num_tokens = 0

    def append(self, tokens: Tokens, rows: pa.RecordBatch) -> None:
        """Add whole documents: one of `rows` (of ROWS_SCHEMA) each, in the order of `tokens`."""
        kept = ~is_padding(rows)
        if not kept.all():
            tokens = tokens[np.repeat(kept, count_tokens(rows))]
            rows = rows.filter(pa.array(kept))
        ends = np.cumsum(count_tokens(rows))
        self.num_tokens += len(tokens)
        document, position = 0, 0
        while document < len(ends):
            room = self.max_tokens - self.num_buffered
            last = int(np.searchsorted(ends, position + room, side="right"))
            if not self.num_buffered:
                last = max(last, document + 1)  # A document that is longer is packed alone.
            stop = int(ends[last - 1]) if last > document else position
            self._keep(tokens[position:stop], rows.slice(document, last - document))
            if last < len(ends):
                self._write()
            document, position = last, stop

    def finish(self) -> list[WrittenShard]:
        """Pack what is left, and return the shards, in order; none if there were no documents."""
        self._write()
        written = self.writer.finish()
        counts = (entry.shard.num_tokens - entry.shard.padding_tokens for entry in written)
        assert sum(counts) == self.num_tokens, "packing lost tokens"
        return written

    def close(self) -> None:
        """Close a file that will not be finished; nothing to do after `finish`."""
        self.writer.close()

    def _keep(self, tokens: Tokens, rows: pa.RecordBatch) -> None:
        if len(rows):
            self.tokens.append(tokens.copy())
            self.rows.append(rows)
            self.num_buffered += len(tokens)

    def _write(self) -> None:
        """Pack the documents of the buffer, and write their rows."""
        if not self.rows:
            return
        tokens = np.concatenate(self.tokens)
        schema = self.rows[0].schema
        rows = pa.Table.from_batches(self.rows, schema).combine_chunks().to_batches()[0]
        self.tokens, self.rows, self.num_buffered = [], [], 0
        sizes = count_tokens(rows)
        layout = pack(sizes, self.packing.row_tokens)
        ends = np.cumsum(sizes)
        padding: Tokens = np.full(self.packing.row_tokens, self.packing.end_of_text, tokens.dtype)
        pieces = [
            padding[:size] if number == PADDING else tokens[ends[number] - size : ends[number]]
            for number, size in zip(
                layout.numbers.tolist(), layout.num_tokens.tolist(), strict=True
            )
        ]
        is_free = layout.numbers == PADDING
        paddings = make_padding(layout.num_tokens[is_free], schema)
        # The rows of documents, and after them those of padding, of which each is taken once.
        places = np.where(is_free, len(rows) - 1 + np.cumsum(is_free), layout.numbers)
        both = pa.Table.from_batches([rows, paddings], schema).take(pa.array(places))
        self.writer.append(np.concatenate(pieces), both.combine_chunks().to_batches()[0])
