"""Signatures -> clusters of near copies, in 8 bytes of memory a text, and a part of the bands.

Texts with a band in common are candidates. Among those of a band, in the order of their numbers,
the first leads: those that agree with it in enough places are near copies of it. Of the rest, the
first leads next, and so on, MAX_LEADERS times at most. Clusters are what near copies connect: a
copy's copy belongs to them. Nothing depends on who made the signatures, only on their order.

    disk      16 x bands + bands x rows bytes a text, while clusters are found
    memory    8 bytes a text, and a 512th of the bands' entries, 64 bytes for each; more where very
              many texts have one band, as the entries of a band are sorted together
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from shards.disk.durable import naming
from shards.format import Int64
from shards.near.buckets import FILE_ENTRIES, MAX_FILES, Buckets, Entries
from shards.near.forest import Forest
from shards.near.signatures import NearSettings

ENTRY = np.dtype([("key", "<u8"), ("number", "<u8")])
MAX_LEADERS = 64
# Texts compared, or looked up, at a time.
BLOCK_TEXTS = 1 << 15
# What sorting an entry takes: the entry, its copy, and its place in the order.
SORTED_ENTRY_BYTES = 64


def measure_need(num_texts: int, settings: NearSettings) -> tuple[int, int]:
    """What finding clusters, and counting them, takes while it runs: disk and memory in bytes."""
    disk = num_texts * (ENTRY.itemsize * settings.bands + settings.places)
    num_entries = num_texts * settings.bands
    in_file = max(num_entries // MAX_FILES, min(num_entries, FILE_ENTRIES))
    return disk, num_texts * 8 + in_file * SORTED_ENTRY_BYTES


@dataclass(frozen=True)
class Clusters:
    """Which texts are near copies of one another; the texts' last bytes stay in a file."""

    forest: Forest
    low: npt.NDArray[np.uint8]  # (texts, places), mapped
    settings: NearSettings

    def find_kept(self, numbers: Int64) -> Int64:
        """The first text of each text's cluster: itself, if it is the first or has no copies."""
        return self.forest.find_roots(numbers)

    def estimate(self, numbers: Int64, others: Int64) -> npt.NDArray[np.float32]:
        """The similarity of texts with others, as their signatures estimate it."""
        return self.settings.estimate(count_agreeing(self.low, numbers, others))


class ClusterFinder:
    """Takes the signatures of `num_texts` texts in order, and finds their clusters.

    Its files are in `folder`, which is to be empty, and are no more needed once the clusters are.
    """

    def __init__(self, folder: Path, num_texts: int, settings: NearSettings) -> None:
        self.settings = settings
        self.num_texts = num_texts
        self.folder = folder
        self.buckets = Buckets(folder, num_texts * settings.bands, "key")
        self.forest = Forest(num_texts)
        self.num_added = 0

    def __enter__(self) -> "ClusterFinder":
        with naming(self.folder):
            self.low_file: BinaryIO = open(self.folder / "low", "wb")
        self.buckets.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.buckets.__exit__(*error)  # type: ignore[arg-type]
        with naming(self.folder):
            self.low_file.close()

    def add(self, signatures: Entries, is_left_out: npt.NDArray[np.bool_] | None = None) -> None:
        """Add the signatures of the next texts; those left out are nobody's candidates."""
        keys = signatures["keys"]
        is_candidate = keys != 0
        if is_left_out is not None:
            is_candidate &= ~is_left_out[:, None]
        numbers, bands = np.nonzero(is_candidate)
        entries = np.empty(len(numbers), ENTRY)
        entries["key"] = keys[numbers, bands]
        entries["number"] = numbers + self.num_added
        self.buckets.add(entries)
        with naming(self.folder):
            self.low_file.write(np.ascontiguousarray(signatures["low"]).tobytes())
        self.num_added += len(signatures)

    def join(self, first: Int64, second: Int64) -> None:
        """Put texts into one cluster anyway, first[i] and second[i]."""
        self.forest.join(first, second)

    def find(self) -> Clusters:
        """The clusters, once all is added."""
        assert self.num_added == self.num_texts
        shape = (self.num_texts, self.settings.places)
        low: npt.NDArray[np.uint8] = np.empty(shape, np.uint8)
        if self.num_texts:
            low = np.memmap(self.folder / "low", np.uint8, "r", shape=shape)
        for path in self.buckets.take_files():
            for first, second in compare_texts(np.fromfile(path, ENTRY), low, self.settings.needed):
                self.forest.join(first, second)
        return Clusters(self.forest, low, self.settings)


def compare_texts(
    entries: Entries, low: npt.NDArray[np.uint8], needed: int
) -> Iterator[tuple[Int64, Int64]]:
    """The near copies among texts with a key in common: pairs of a leader and another text."""
    keys = entries["key"].copy()
    order = np.argsort(keys, kind="stable")
    keys, numbers = keys[order], entries["number"][order].astype(np.int64)
    for _ in range(MAX_LEADERS):
        is_first = np.ones(len(keys), np.bool_)
        is_first[1:] = keys[1:] != keys[:-1]
        leaders = numbers[is_first][np.cumsum(is_first) - 1]
        is_near = is_first.copy()
        for block in blocks(np.flatnonzero(~is_first)):
            is_near[block] = count_agreeing(low, leaders[block], numbers[block]) >= needed
        is_copy = is_near & ~is_first
        yield leaders[is_copy], numbers[is_copy]
        keys, numbers = keys[~is_near], numbers[~is_near]
        if not len(keys):
            return


def count_agreeing(low: npt.NDArray[np.uint8], numbers: Int64, others: Int64) -> Int64:
    """In how many places the signatures of texts agree with those of others."""
    agreeing: Int64 = (low[numbers] == low[others]).sum(1, dtype=np.int64)
    return agreeing


def blocks(numbers: Int64) -> Iterator[Int64]:
    """The numbers, BLOCK_TEXTS at a time."""
    for start in range(0, len(numbers), BLOCK_TEXTS):
        yield numbers[start : start + BLOCK_TEXTS]
