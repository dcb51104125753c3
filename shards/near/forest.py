"""Which numbers belong together, and the least number of each group: union-find on arrays."""

import numpy as np
import numpy.typing as npt

from shards.format import Int64


class Forest:
    """Numbers 0 to count - 1, each alone at first; 4 bytes each, 8 if there are 2^32 or more."""

    def __init__(self, count: int) -> None:
        dtype = np.uint32 if count < 1 << 32 else np.uint64
        # A number's parent is never greater than it; a root, the least of its group, is its own.
        self.parents: npt.NDArray[np.unsignedinteger] = np.arange(count, dtype=dtype)

    def find_roots(self, numbers: Int64) -> Int64:
        """The least number of the group of each number."""
        found = self.parents[numbers]
        while True:
            above = self.parents[found]
            if (above == found).all():
                break
            found = above
        self.parents[numbers] = found
        return found.astype(np.int64)

    def join(self, first: Int64, second: Int64) -> None:
        """Join the groups of first[i] and second[i], for each i.

        The outcome does not depend on the order of the pairs.
        """
        while True:
            first, second = self.find_roots(first), self.find_roots(second)
            is_apart = first != second
            if not is_apart.any():
                return
            first, second = first[is_apart], second[is_apart]
            low, high = np.minimum(first, second), np.maximum(first, second)
            # Of several that want one root, the least gets it; the others ask again.
            np.minimum.at(self.parents, high, low.astype(self.parents.dtype))
