"""--dedup exact: finds the copies, all but the first document with a text, in plan order.

When all units are done, the doc_hash of every document (16 bytes of the sha256 of its text) and
its number go to one of up to 512 files, chosen by the first bits of the hash. Sorting each file on
its own gives the numbers of the copies; prep/units/cut.py drops them. Nothing depends on which
worker did a unit, or on kills.

    disk      24 bytes per document
    memory    1 bit per document, and about 0.4 GB
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from shards.disk.durable import naming
from shards.format import Int64, Shard
from shards.rows import read_rows
from shards.sidecar import is_blank, split_hashes

MAX_FILES = 512
# Hashes sorted at a time; also about the most that a file holds, while 512 files are enough.
SORTED_HASHES = 1 << 21
# Hashes dealt to the files at a time.
DEALT_HASHES = 1 << 20
ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<u8")])
Entries = np.ndarray[tuple[int], np.dtype[np.void]]


@dataclass(frozen=True)
class PlacedShard:
    """A shard and the folder it is in."""

    folder: Path
    shard: Shard


class Copies:
    """One bit per document, in order: whether it is a copy of an earlier one."""

    def __init__(self, num_documents: int) -> None:
        self.bits = np.zeros(-(-num_documents // 8), np.uint8)

    def add(self, numbers: npt.NDArray[np.uint64]) -> None:
        """Mark the documents with these numbers as copies."""
        bits = np.left_shift(1, (numbers & np.uint64(7)).astype(np.uint8), dtype=np.uint8)
        np.bitwise_or.at(self.bits, (numbers >> np.uint64(3)).astype(np.int64), bits)

    def among(self, first: int, count: int) -> Int64:
        """The copies among `count` documents from number `first` on, counted from there."""
        here = self.bits[first // 8 : -(-(first + count) // 8)]
        marked = np.unpackbits(here, bitorder="little")[first % 8 :][:count]
        return np.flatnonzero(marked).astype(np.int64)


def find_copies(shards: Sequence[PlacedShard], temporary: Path) -> Copies:
    """Which documents of the shards, in this order, have the text of an earlier one."""
    num_documents = sum(placed.shard.num_documents for placed in shards)
    num_files = min(1 << (num_documents // SORTED_HASHES).bit_length(), MAX_FILES)
    paths = [temporary / f"hashes-{place:03d}" for place in range(num_files)]
    with naming(temporary):
        deal_hashes(read_hashes(shards), paths)
    copies = Copies(num_documents)
    for path in paths:
        for numbers in find_repeated(path):
            copies.add(numbers)
        path.unlink()
    return copies


def read_hashes(shards: Iterable[PlacedShard]) -> Iterator[Entries]:
    """The hash and number of each document; documents that were removed have none."""
    number = 0
    for placed in shards:
        for batch in read_rows(placed.folder, placed.shard, ["doc_hash"]):
            column = batch.column("doc_hash")
            entries = np.empty(len(column), ENTRY)
            entries["high"], entries["low"] = split_hashes(column)
            entries["number"] = np.arange(number, number + len(column), dtype=np.uint64)
            number += len(column)
            yield entries[~is_blank(column)]


def deal_hashes(batches: Iterable[Entries], paths: Sequence[Path]) -> None:
    """Append each entry to the file that its hash belongs to; a file's numbers ascend."""
    files = [open(path, "wb", buffering=1 << 17) for path in paths]  # noqa: SIM115
    try:
        waiting: list[Entries] = []
        for batch in batches:
            waiting.append(batch)
            if sum(map(len, waiting)) >= DEALT_HASHES:
                deal(np.concatenate(waiting), files)
                waiting = []
        if waiting:
            deal(np.concatenate(waiting), files)
    finally:
        for file in files:
            file.close()


def deal(entries: Entries, files: Sequence[BinaryIO]) -> None:
    """Append entries to the files, chosen by the first bits of their hashes."""
    num_bits = len(files).bit_length() - 1
    places = (entries["high"] >> np.uint64(63 - num_bits)) >> np.uint64(1)
    entries = entries[np.argsort(places, kind="stable")]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(places.astype(np.int64)))]).tolist()
    for file, start, stop in zip(files, bounds, bounds[1:], strict=False):
        file.write(entries[start:stop].tobytes())


def find_repeated(path: Path) -> Iterator[npt.NDArray[np.uint64]]:
    """The numbers of the documents whose hash occurs earlier in the file, some at a time."""
    distinct = np.empty(0, ENTRY)
    with open(path, "rb") as file:
        while len(block := np.fromfile(file, ENTRY, SORTED_HASHES)):
            entries = np.concatenate([distinct, block])
            is_copy = mark_copies(entries)
            yield entries["number"][is_copy]
            distinct = entries[~is_copy]


def mark_copies(entries: Entries) -> npt.NDArray[np.bool_]:
    """Which entries have the hash of one with a lower number."""
    high = entries["high"].copy()
    order = np.argsort(high)
    is_same = high[order[1:]] == high[order[:-1]]
    # Sorting one key is much cheaper than sorting three, and nearly all hashes differ in their
    # first half: only the entries that share it with another one are sorted by the whole hash.
    is_near = np.zeros(len(entries), np.bool_)
    is_near[order[1:][is_same]] = True
    is_near[order[:-1][is_same]] = True
    near = np.flatnonzero(is_near)
    chosen = entries[near]
    near = near[np.lexsort((chosen["number"], chosen["low"], chosen["high"]))]
    chosen = entries[near]
    # Equal hashes are now neighbors in the order of their numbers: all but the first are copies.
    is_equal = (chosen["high"][1:] == chosen["high"][:-1]) & (
        chosen["low"][1:] == chosen["low"][:-1]
    )
    is_copy = np.zeros(len(entries), np.bool_)
    is_copy[near[1:][is_equal]] = True
    return is_copy
