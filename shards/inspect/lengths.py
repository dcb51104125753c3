"""Document lengths: exact counts, in memory that does not grow with the set."""

from dataclasses import dataclass

import numpy as np

from shards.format import Int64
from shards.reader import Shards
from shards.sidecar import count_tokens
from shards.where.choice import mark_documents
from shards.where.condition import parse_condition

PERCENTILES = (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
# Lengths below this are counted in an array. Longer ones are kept one by one: 600 G tokens have
# room for fewer than 600,000 such documents.
LONG_TOKENS = 1 << 20
# A condition that is true for all documents.
EVERY = "num_tokens >= 0"


class LengthCounter:
    """Counts documents by their number of tokens."""

    def __init__(self) -> None:
        self.counts: Int64 = np.zeros(LONG_TOKENS, np.int64)
        self.long: list[Int64] = []

    def add(self, sizes: Int64) -> None:
        """Count documents; `sizes` are their numbers of tokens."""
        is_long = sizes >= LONG_TOKENS
        if is_long.any():
            self.long.append(sizes[is_long])
            sizes = sizes[~is_long]
        counts = np.bincount(sizes)
        self.counts[: len(counts)] += counts

    def finish(self) -> "Lengths":
        """The lengths counted so far."""
        values, counts = np.unique(
            np.concatenate([*self.long, np.empty(0, np.int64)]), return_counts=True
        )
        short = np.flatnonzero(self.counts)
        return Lengths(
            np.concatenate([short, values]), np.concatenate([self.counts[short], counts])
        )


@dataclass(frozen=True)
class Bin:
    """The documents with `first` to `last` tokens."""

    first: int
    last: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Lengths:
    """The lengths that occur, ascending, and how many documents have each."""

    values: Int64
    documents: Int64

    @property
    def num_documents(self) -> int:
        """The number of documents of any length."""
        return int(self.documents.sum())

    @property
    def num_tokens(self) -> int:
        """The number of tokens in all documents."""
        return int(self.values @ self.documents)

    def percentile(self, percent: float) -> int:
        """The least length that `percent` of the documents do not exceed; 0 if there are none.

        >>> Lengths(np.array([2, 5, 9]), np.array([5, 4, 1])).percentile(50)
        2
        """
        if not len(self.values):
            return 0
        ends = np.cumsum(self.documents)
        rank = max(int(np.ceil(ends[-1] * percent / 100)), 1)
        return int(self.values[np.searchsorted(ends, rank)])

    def count_longer(self, num_tokens: int) -> tuple[int, int]:
        """How many documents are longer than this, and how many tokens they have.

        >>> Lengths(np.array([2, 5, 9]), np.array([5, 4, 1])).count_longer(4)
        (5, 29)
        """
        documents = self.documents[self.values > num_tokens]
        return int(documents.sum()), int(self.values[self.values > num_tokens] @ documents)

    def histogram(self) -> list[Bin]:
        """A bin from each power of two to the next, between the shortest document and the longest.

        >>> Lengths(np.array([2, 5, 9]), np.array([5, 4, 1])).histogram()[0]
        Bin(first=2, last=3, documents=5, tokens=10)
        """
        if not len(self.values):
            return []
        powers = np.frexp(self.values)[1] - 1
        documents = np.bincount(powers, self.documents).astype(np.int64).tolist()
        tokens = np.bincount(powers, self.documents * self.values).astype(np.int64).tolist()
        return [
            Bin(1 << power, (2 << power) - 1, documents[power], tokens[power])
            for power in range(int(powers[0]), int(powers[-1]) + 1)
        ]


def count_lengths(shards: Shards, where: str | None, counter: LengthCounter) -> None:
    """Count the documents of a set's train split, or those that a condition chooses, by length.

    Only sidecars are read. Raises ValueError as `choose` does.
    """
    condition = parse_condition(EVERY if where is None else where)
    for shard in shards.manifest.split("train"):
        for rows, marks in mark_documents(shards, shard, condition):
            counter.add(count_tokens(rows)[marks])
