"""--dedup exact: finds the copies, all but the first document with a text, in plan order.

When all units are done, the doc_hash of every document (16 bytes of the sha256 of its text) and
its number go to one of up to 512 files, chosen by the first bits of the hash. Sorting each file on
its own gives the numbers of the copies; prep/copies/cut.py drops them. Nothing depends on which
worker did a unit, or on kills.

    disk      24 bytes per document
    memory    1 bit per document, and about 0.4 GB
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from prep.units.receipts import Receipt
from shards.disk.folders import make_folder, remove
from shards.format import Int64, Shard
from shards.near.buckets import Buckets, Entries
from shards.rows import read_rows
from shards.sidecar import is_blank, split_hashes

# The reason under which the audit counts copies.
DUPLICATE = "duplicate"
# Hashes sorted at a time.
SORTED_HASHES = 1 << 21
ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<u8")])


@dataclass(frozen=True)
class PlacedShard:
    """A shard and the folder it is in."""

    folder: Path
    shard: Shard


class NumberedShard(NamedTuple):
    """A shard, and the numbers of its documents among all."""

    placed: PlacedShard
    numbers: Int64


class Copies:
    """One bit per document, in order: whether it is a copy of an earlier one."""

    def __init__(self, num_documents: int) -> None:
        self.bits = np.zeros(-(-num_documents // 8), np.uint8)

    def add(self, numbers: npt.NDArray[np.integer]) -> None:
        """Mark the documents with these numbers as copies."""
        bits = np.left_shift(1, (numbers & 7).astype(np.uint8), dtype=np.uint8)
        np.bitwise_or.at(self.bits, (numbers >> 3).astype(np.int64), bits)

    def mark(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Which of `count` documents from number `first` on are copies."""
        here = self.bits[first // 8 : -(-(first + count) // 8)]
        return np.unpackbits(here, bitorder="little")[first % 8 :][:count].astype(np.bool_)

    def among(self, first: int, count: int) -> Int64:
        """The copies among `count` documents from number `first` on, counted from there."""
        return np.flatnonzero(self.mark(first, count))


class ExactCopies:
    """What --dedup exact drops of each unit; `earlier` documents come before all units'."""

    reasons = (DUPLICATE,)
    # How many clusters have how many documents, and the sha256 of files about them: not told.
    clusters: dict[str, int]
    files: dict[str, str]

    def __init__(
        self, receipts: Sequence[Receipt], earlier: Sequence[PlacedShard], out: Path, folder: Path
    ) -> None:
        placed = [PlacedShard(out, shard) for receipt in receipts for shard in receipt.shards]
        self.copies = find_copies([*earlier, *placed], folder)
        self.firsts = {}
        first = sum(entry.shard.num_rows for entry in earlier)
        for receipt in receipts:
            self.firsts[receipt.unit] = first
            first += sum(shard.num_rows for shard in receipt.shards)
        self.clusters, self.files = {}, {}

    def find_rows(self, receipt: Receipt) -> dict[str, Int64]:
        """For each reason, which of a unit's documents go, as they lie in its shards."""
        count = sum(shard.num_rows for shard in receipt.shards)
        return {DUPLICATE: self.copies.among(self.firsts[receipt.unit], count)}


def find_copies(shards: Sequence[PlacedShard], temporary: Path) -> Copies:
    """Which documents of the shards, in this order, have the text of an earlier one."""
    num_documents = sum(placed.shard.num_rows for placed in shards)
    copies = Copies(num_documents)
    for numbers, _ in find_exact_pairs(number_documents(shards), num_documents, temporary):
        copies.add(numbers)
    return copies


def number_documents(shards: Iterable[PlacedShard], first: int = 0) -> Iterator[NumberedShard]:
    """The shards with their documents numbered as they lie in them."""
    for placed in shards:
        count = placed.shard.num_rows
        yield NumberedShard(placed, np.arange(first, first + count))
        first += count


def find_exact_pairs(
    shards: Iterable[NumberedShard], num_documents: int, temporary: Path
) -> Iterator[tuple[Int64, Int64]]:
    """The numbers of copies, and of the first document with the text of each; some at a time.

    Documents of one text must have ascending numbers. `temporary` is made, and removed at the end.
    """
    remove(temporary)
    make_folder(temporary)
    with Buckets(temporary, num_documents, "high") as buckets:
        for entries in read_hashes(shards):
            buckets.add(entries)
    for path in buckets.take_files():
        yield from find_repeated(path)
    temporary.rmdir()


def read_hashes(shards: Iterable[NumberedShard]) -> Iterator[Entries]:
    """The hash and number of each document; documents that were removed have none."""
    for placed, numbers in shards:
        first = 0
        for batch in read_rows(placed.folder, placed.shard, ["doc_hash"]):
            column = batch.column("doc_hash")
            entries = np.empty(len(column), ENTRY)
            entries["high"], entries["low"] = split_hashes(column)
            entries["number"] = numbers[first : first + len(column)]
            first += len(column)
            yield entries[~is_blank(column)]


def find_repeated(path: Path) -> Iterator[tuple[Int64, Int64]]:
    """The documents whose hash occurs earlier in the file, and the first with each one's hash."""
    distinct = np.empty(0, ENTRY)
    with open(path, "rb") as file:
        while len(block := np.fromfile(file, ENTRY, SORTED_HASHES)):
            entries = np.concatenate([distinct, block])
            copies, firsts = pair_copies(entries)
            numbers = entries["number"].astype(np.int64)
            yield numbers[copies], numbers[firsts]
            distinct = np.delete(entries, copies)


def pair_copies(entries: Entries) -> tuple[Int64, Int64]:
    """The entries with the hash of one with a lower number, and for each the lowest of its hash."""
    high = entries["high"].copy()
    order = np.argsort(high)
    is_same = high[order[1:]] == high[order[:-1]]
    # Sorting one key is much cheaper than sorting three, and nearly all hashes differ in their
    # first half: only the entries that share it with another one are sorted by the whole hash.
    shares_half = np.zeros(len(entries), np.bool_)
    shares_half[order[1:][is_same]] = True
    shares_half[order[:-1][is_same]] = True
    candidates = np.flatnonzero(shares_half)
    chosen = entries[candidates]
    candidates = candidates[np.lexsort((chosen["number"], chosen["low"], chosen["high"]))]
    chosen = entries[candidates]
    # Equal hashes are now neighbors in the order of their numbers: all but the first are copies.
    is_copy = np.zeros(len(candidates), np.bool_)
    is_copy[1:] = (chosen["high"][1:] == chosen["high"][:-1]) & (
        chosen["low"][1:] == chosen["low"][:-1]
    )
    firsts = np.maximum.accumulate(np.where(is_copy, 0, np.arange(len(candidates))))
    return candidates[is_copy], candidates[firsts[is_copy]]
