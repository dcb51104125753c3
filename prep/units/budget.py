"""--max-documents and --max-tokens: how much may still be added to a set, or to a unit of it."""

from dataclasses import dataclass

import numpy as np

from shards.format import Int64


@dataclass(frozen=True)
class Budget:
    """How much a unit may still add before --max-documents or --max-tokens ends the set."""

    documents: int | None = None
    tokens: int | None = None

    @property
    def is_spent(self) -> bool:
        """Whether nothing more may be added."""
        return self.documents == 0 or self.tokens == 0

    def covers(self, documents: int, tokens: int) -> bool:
        """Whether this much may be added."""
        return (self.documents is None or documents <= self.documents) and (
            self.tokens is None or tokens <= self.tokens
        )

    def minus(self, documents: int, tokens: int) -> "Budget":
        """What is left after adding this much."""
        return Budget(
            None if self.documents is None else self.documents - documents,
            None if self.tokens is None else self.tokens - tokens,
        )

    def count_fitting(self, ends: Int64) -> int:
        """How many documents, from the first on, may still be added.

        `ends` says where the tokens of each end, counted from the start of the first.
        """
        count = len(ends)
        if self.documents is not None:
            count = min(count, self.documents)
        if self.tokens is not None:
            count = min(count, int(np.searchsorted(ends, self.tokens, side="right")))
        return count
