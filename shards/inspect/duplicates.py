"""Counts exact copies in a set by doc_hash, in memory that does not grow with the set.

The hashes are read in several passes. Each takes one range of their first 64 bits and finds the
values that repeat, a pass for every 53 M documents; one more pass compares the whole hashes of the
documents with those values. That takes 0.5 GiB, and at most 2 GiB if nearly every document has a
copy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shards.format import Int64, Shard
from shards.rows import read_rows
from shards.screen.lines import ReadProgress
from shards.sidecar import Keys, count_tokens, is_blank, split_hashes

# Hashes in memory at a time, 8 bytes each; a range is chosen to fill four fifths of it.
CAPACITY = 1 << 26
# With more repeated values than this, at 32 bytes each, count their copies before finding more.
MAX_REPEATED = 1 << 23
BLOCK = 1 << 20


@dataclass
class Duplicates:
    """How much of a set is a copy of something else in it."""

    # Texts that occur more than once.
    texts: int = 0
    # Documents beyond the first of each text, and their tokens.
    documents: int = 0
    tokens: int = 0
    # Validation documents whose text is also in train.
    validation_documents_in_train: int = 0


def count_duplicates(folder: Path, shards: list[Shard], capacity: int = CAPACITY) -> Duplicates:
    """Count the exact copies among the shards' documents."""
    total = sum(shard.num_documents for shard in shards)
    capacity = max(min(total, capacity), 1)
    num_ranges = 1 if total <= capacity else -(-total * 5 // (capacity * 4))
    bounds = [2**64 * place // num_ranges for place in range(num_ranges + 1)]
    found = Duplicates()
    repeated: Keys = np.empty(0, np.uint64)
    progress = ReadProgress("hashes", total * (num_ranges + 1))
    finder = RepeatFinder(capacity)
    for start, stop in pairwise(bounds):
        for batch in read_hashes(folder, shards):
            progress.add(len(batch.keys))
            finder.add(choose_range(batch.keys, start, stop))
        repeated = np.concatenate([repeated, finder.finish()])
        if len(repeated) > MAX_REPEATED or (len(repeated) and stop == bounds[-1]):
            if stop < bounds[-1]:  # An extra pass, because there are so many copies.
                progress.total += total
            count_copies(folder, shards, repeated, found, progress)
            repeated = repeated[:0]
    progress.finish()
    return found


def choose_range(keys: Keys, start: int, stop: int) -> Keys:
    """The keys in [start, stop)."""
    if stop - start == 2**64:
        return keys
    return keys[(keys >= np.uint64(start)) & (keys <= np.uint64(stop - 1))]


class HashBatch(NamedTuple):
    """Documents of one shard: both halves of their hashes, and their sizes in tokens."""

    keys: Keys
    rest: Keys
    sizes: Int64
    is_validation: bool


def read_hashes(folder: Path, shards: list[Shard]) -> Iterator[HashBatch]:
    """The hashes of all documents, in order, without removed ones."""
    for shard in shards:
        for batch in read_rows(folder, shard, ["num_tokens", "doc_hash"]):
            column = batch.column("doc_hash")
            (keys, rest), sizes = split_hashes(column), count_tokens(batch)
            is_document = ~is_blank(column)
            if not is_document.all():
                keys, rest, sizes = keys[is_document], rest[is_document], sizes[is_document]
            yield HashBatch(keys, rest, sizes, shard.split == "validation")


class RepeatFinder:
    """Finds the keys that were added more than once."""

    def __init__(self, capacity: int) -> None:
        self.keys: Keys = np.empty(capacity, np.uint64)
        self.num_keys = 0
        self.repeated: Keys = np.empty(0, np.uint64)

    def add(self, keys: Keys) -> None:
        """Add keys, in any order."""
        while len(keys):
            if self.num_keys == len(self.keys):
                self._drop_repeated()
            if self.num_keys == len(self.keys):  # The hashes are not evenly spread.
                self.keys = np.concatenate([self.keys, np.empty_like(self.keys)])
            piece = keys[: len(self.keys) - self.num_keys]
            self.keys[self.num_keys : self.num_keys + len(piece)] = piece
            self.num_keys += len(piece)
            keys = keys[len(piece) :]

    def finish(self) -> Keys:
        """The repeated keys, sorted; the finder is empty afterwards."""
        self._drop_repeated()
        repeated, self.repeated = self.repeated, self.repeated[:0]
        self.num_keys = 0
        return repeated

    def _drop_repeated(self) -> None:
        """Sort the keys and keep one of each, noting those that occurred more than once."""
        keys = self.keys[: self.num_keys]
        keys.sort()
        found = [self.repeated]
        num_kept = 0
        for start in range(0, len(keys), BLOCK):
            block = keys[start : start + BLOCK].copy()
            is_repeat = np.empty(len(block), np.bool_)
            is_repeat[1:] = block[1:] == block[:-1]
            # The previous block was moved to the front; its last key is the last one kept.
            is_repeat[0] = num_kept > 0 and block[0] == keys[num_kept - 1]
            found.append(np.unique(block[is_repeat]))
            kept = block[~is_repeat]
            keys[num_kept : num_kept + len(kept)] = kept
            num_kept += len(kept)
        self.num_keys = num_kept
        self.repeated = np.unique(np.concatenate(found))


def count_copies(
    folder: Path, shards: list[Shard], repeated: Keys, found: Duplicates, progress: ReadProgress
) -> None:
    """Add the copies among the documents whose key is in `repeated` (sorted) to `found`.

    A key is the first half of a doc_hash, so two texts may share one. The first document of each
    key decides which text the key stands for: `rest` keeps the other half of its hash, and two
    counters per key, train and validation, count the documents equal to it. Documents of any other
    text go to a dictionary, one by one; a set of 10^9 documents is not expected to have any.
    """
    rest = np.zeros(len(repeated), np.uint64)
    num_train, num_validation = (np.zeros(len(repeated), np.int32) for _ in range(2))
    others: dict[tuple[int, int], list[tuple[int, bool]]] = {}
    for batch in read_hashes(folder, shards):
        progress.add(len(batch.keys))
        places = np.searchsorted(repeated, batch.keys)
        places[places == len(repeated)] = 0  # Past the end; the comparison below drops it.
        chosen = np.flatnonzero(repeated[places] == batch.keys)
        places = places[chosen]
        # Backwards: if a new key has several documents here, the first is written last and stays.
        new = np.flatnonzero(num_train[places] + num_validation[places] == 0)[::-1]
        rest[places[new]] = batch.rest[chosen[new]]
        is_same = rest[places] == batch.rest[chosen]
        # Before this batch is counted: a key without a count has had no document yet.
        is_first = find_first(places, num_train, num_validation)
        found.tokens += int(batch.sizes[chosen[is_same & ~is_first]].sum())
        counts = num_validation if batch.is_validation else num_train
        np.add.at(counts, places[is_same], 1)
        for place in np.flatnonzero(~is_same).tolist():
            document = chosen[place]
            text = int(batch.keys[document]), int(batch.rest[document])
            size = int(batch.sizes[document])
            others.setdefault(text, []).append((size, batch.is_validation))
    num_documents = num_train.astype(np.int64) + num_validation
    found.texts += int((num_documents > 1).sum())
    found.documents += int((num_documents - 1).sum())
    found.validation_documents_in_train += int(num_validation[num_train > 0].sum())
    for copies in others.values():
        add_copies(found, copies)


def find_first(
    places: npt.NDArray[np.intp],
    num_train: npt.NDArray[np.int32],
    num_validation: npt.NDArray[np.int32],
) -> npt.NDArray[np.bool_]:
    """Which of a batch's documents are the first with their key in the whole set."""
    is_first = np.zeros(len(places), np.bool_)
    is_first[np.unique(places, return_index=True)[1]] = True
    is_first &= num_train[places] + num_validation[places] == 0
    return is_first


def add_copies(found: Duplicates, documents: list[tuple[int, bool]]) -> None:
    """Add the documents of one text to `found`, each as (tokens, whether in validation)."""
    num_validation = sum(is_validation for _, is_validation in documents)
    found.texts += len(documents) > 1
    found.documents += len(documents) - 1
    found.tokens += sum(size for size, _ in documents[1:])
    if num_validation < len(documents):
        found.validation_documents_in_train += num_validation
