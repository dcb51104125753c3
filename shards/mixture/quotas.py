"""Which set is slot n, where each set has a share of every block: exact quotas, with no state.

After any n slots, each set has had its share of them, but for less than one:

    |count_i(n) - n share_i / block| <= 1 - 1 / (2 k - 2)        for k sets

No order of slots has a smaller bound (Tijdeman, The Chairman Assignment Problem, 1980). Sample j of
set i can be slot n, counted from 1, without breaking it if both hold:

          n share_i >= block (j + 1 / (2 k - 2))
    (n - 1) share_i <= block (j + 1 - 1 / (2 k - 2))

Of those that can, a slot takes the one that can wait the least. This gives the order of a block,
which comes again and again.
"""

import heapq
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from shards.format import Int64


@dataclass(frozen=True)
class Quotas:
    """Slots 0, 1, ... dealt out to sets, of which set i has `shares[i]` in every block.

    A share may be 0, but not all.

    >>> Quotas((3, 1)).locate(np.arange(8))
    (array([0, 0, 1, 0, 0, 0, 1, 0]), array([0, 1, 0, 2, 3, 4, 1, 5]))
    """

    shares: tuple[int, ...]

    @property
    def block(self) -> int:
        """How many slots a block has."""
        return sum(self.shares)

    def locate(self, slots: Int64) -> tuple[Int64, Int64]:
        """For each slot its set, and how many slots before it are the set's."""
        blocks, places = np.divmod(slots, self.block)
        sets = self._order[places]
        return sets, blocks * np.array(self.shares)[sets] + self._ordinals[places]

    def find(self, number: int, ordinals: Int64) -> Int64:
        """The slots that are a set's, by how many of its come before; the inverse of `locate`."""
        blocks, places = np.divmod(ordinals, self.shares[number])
        return blocks * self.block + self._places[number][places]

    def count(self, num_slots: int) -> Int64:
        """How many of the first `num_slots` slots each set has."""
        blocks, rest = divmod(num_slots, self.block)
        counts = np.bincount(self._order[:rest], minlength=len(self.shares))
        return blocks * np.array(self.shares) + counts

    @property
    def _order(self) -> Int64:
        return order_block(self.shares)

    @cached_property
    def _places(self) -> list[Int64]:
        return [np.flatnonzero(self._order == number) for number in range(len(self.shares))]

    @cached_property
    def _ordinals(self) -> Int64:
        ordinals = np.empty(self.block, np.int64)
        for places in self._places:
            ordinals[places] = np.arange(len(places))
        return ordinals


@lru_cache(maxsize=16)
def order_block(shares: tuple[int, ...]) -> Int64:
    """The set of each slot of a block."""
    block, parts = sum(shares), 2 * sum(share > 0 for share in shares) - 2
    if parts == 0:
        return np.full(block, np.argmax(shares), np.int64)
    # The samples that can come from this slot on, each with the last slot that it can be.
    due: list[list[tuple[int, int]]] = [[] for _ in range(block + 1)]
    for number, share in enumerate(shares):
        for j in range(share):
            first = -(-block * (parts * j + 1) // (parts * share))
            last = block * (parts * (j + 1) - 1) // (parts * share) + 1
            due[first].append((last, number))
    order = np.empty(block, np.int64)
    waiting: list[tuple[int, int]] = []
    for slot in range(1, block + 1):
        for entry in due[slot]:
            heapq.heappush(waiting, entry)
        last, order[slot - 1] = heapq.heappop(waiting)
        assert slot <= last, shares
    return order
