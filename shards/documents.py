"""The documents of a set: found by position, URL or hash, or read one after another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.files import ShardFile
from shards.format import SPLITS, Shard
from shards.reader import Shards
from shards.rows import SidecarError, find_groups, list_columns, read_rows, take_rows
from shards.sidecar import BLANK_HASH, NO_SOURCE, SIDECAR_SCHEMA, count_tokens, is_padding
from shards.widths import Tokens

# Tokens copied at a time; a document longer than this is one piece.
PIECE_TOKENS = 1 << 21


@dataclass(frozen=True)
class Document:
    """A document of a set: where its tokens are and where it came from."""

    shard: str
    start: int  # in tokens, from the beginning of its split's stream
    num_tokens: int  # the end-of-document token included
    source_file: str
    source_row: int
    url: str | None
    doc_hash: str

    @property
    def label(self) -> str:
        """What reports call it: its hash, and where it came from."""
        return f"{self.doc_hash} {self.source_file} row {self.source_row}"

    @property
    def stop(self) -> int:
        """The stream position just after the document's last token."""
        return self.start + self.num_tokens

    @property
    def is_padding(self) -> bool:
        """Whether it is none, but what fills up a packed row."""
        return self.source_file == NO_SOURCE

    @property
    def is_blank(self) -> bool:
        """Whether it was removed but still takes up its place."""
        return self.doc_hash == BLANK_HASH.hex()


class Sidecars:
    """The documents of one split, looked up by position, number or content."""

    def __init__(self, shards: Shards, split: str) -> None:
        self.folder = shards.folder
        self.stream = shards.stream(split)

    def between(self, start: int, stop: int) -> list[Document]:
        """The documents with any token in [start, stop) of the split's stream."""
        return [d for d in self.covering(start, stop) if not d.is_padding]

    def covering(self, start: int, stop: int) -> list[Document]:
        """The same and, in a packed set, the padding among them: together they hold all tokens."""
        starts = self.stream.shard_starts
        first = int(np.searchsorted(starts, start, side="right")) - 1
        last = int(np.searchsorted(starts, stop, side="left"))
        return [
            document
            for index in range(first, last)
            for document in self._read_overlap(index, start, stop)
        ]

    def at_index(self, index: int) -> Document:
        """Document `index` of the split, counted from 0 in manifest order."""
        remaining = index
        for place, shard in enumerate(self.stream.shards):
            if 0 <= remaining < shard.num_documents:
                row = find_row(self.folder, shard, remaining)
                table = take_rows(self.folder, shard, np.array([row]))
                return self._to_documents(place, table)[0]
            remaining -= shard.num_documents
        total = sum(shard.num_documents for shard in self.stream.shards)
        raise ValueError(
            f"{self.folder}: no document {index}; the split has {total:,}, counted from 0"
        )

    def matching(self, matches: Callable[[pa.Table], pa.Array]) -> Iterator[Document]:
        """The documents whose sidecar rows `matches` marks, in order."""
        for index, shard in enumerate(self.stream.shards):
            for batch in read_rows(self.folder, shard, SIDECAR_SCHEMA.names):
                table = pa.Table.from_batches([batch])
                for document in self._to_documents(index, table.filter(matches(table))):
                    if not document.is_padding:
                        yield document

    def _read_overlap(self, index: int, start: int, stop: int) -> list[Document]:
        offset = int(self.stream.shard_starts[index])
        shard = self.stream.shards[index]
        groups = find_groups(self.folder, shard, start - offset, stop - offset)
        batches = read_rows(self.folder, shard, SIDECAR_SCHEMA.names, groups=groups)
        table = pa.Table.from_batches(batches, SIDECAR_SCHEMA)
        begins = table["start"].to_numpy().astype(np.int64)
        ends = begins + table["num_tokens"].to_numpy().astype(np.int64)
        kept = pa.array((begins < stop - offset) & (ends > start - offset))
        return self._to_documents(index, table.filter(kept))

    def _to_documents(self, index: int, table: pa.Table) -> list[Document]:
        offset = int(self.stream.shard_starts[index])
        shard = self.stream.shards[index]
        return [make_document(shard, offset, row) for row in table.to_pylist()]


def find_row(folder: Path, shard: Shard, document: int) -> int:
    """The row of a shard's document, by its number there; rows of padding are not counted."""
    if not shard.num_paddings:
        return document
    first = 0
    for batch in read_rows(folder, shard, ["source_file"]):
        rows = np.flatnonzero(~is_padding(batch))
        if document < len(rows):
            return first + int(rows[document])
        document -= len(rows)
        first += len(batch)
    raise SidecarError(folder, shard, "has more padding than the manifest says")


def make_document(shard: Shard, start: int, row: dict[str, Any]) -> Document:
    """A document from its sidecar row; `start` is where its shard begins in the split's stream."""
    place = (start + row["start"], row["num_tokens"])
    origin = (row["source_file"], row["source_row"], row["url"])
    return Document(shard.name, *place, *origin, row["doc_hash"].hex())


def match_url(url: str) -> Callable[[pa.Table], pa.Array]:
    """A function that marks the sidecar rows with this URL."""
    return lambda table: pc.fill_null(pc.equal(table["url"], url), False)


def match_hash(doc_hash: str) -> Callable[[pa.Table], pa.Array]:
    """A function that marks the sidecar rows with this doc_hash, given in hexadecimal."""
    digest = parse_hash(doc_hash)
    return lambda table: pc.equal(table["doc_hash"], pa.scalar(digest, pa.binary(16)))


def parse_hash(doc_hash: str) -> bytes:
    """The 16 bytes of a doc_hash in hexadecimal; ValueError if it is not one."""
    try:
        digest = bytes.fromhex(doc_hash)
    except ValueError:
        digest = b""
    if len(digest) != 16:
        raise ValueError(f"doc hash {doc_hash!r}: expected 32 hexadecimal digits")
    return digest


def find_documents(
    shards: Shards, matches: Callable[[pa.Table], pa.Array]
) -> Iterator[tuple[str, Document]]:
    """The documents whose sidecar rows `matches` marks, each with its split."""
    for split in SPLITS:
        for document in Sidecars(shards, split).matching(matches):
            yield split, document


def read_pieces(folder: Path, shard: Shard) -> Iterator[tuple[int, Tokens, pa.RecordBatch]]:
    """A shard's documents in order, as pieces: the first document's number, tokens, rows."""
    with ShardFile(folder, shard) as file:
        row, position = 0, 0
        # Those that prep kept of the source too.
        names = [name for name in list_columns(folder, shard) if name != "start"]
        for batch in read_rows(folder, shard, names):
            ends = np.cumsum(count_tokens(batch))
            document, before = 0, 0
            while document < len(batch):
                last = int(np.searchsorted(ends, before + PIECE_TOKENS, side="right"))
                last = max(last, document + 1)
                after = int(ends[last - 1])
                piece = file.read_tokens(position + before, after - before)
                yield row + document, piece, batch.slice(document, last - document)
                document, before = last, after
            row += len(batch)
            position += before
