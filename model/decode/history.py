"""What the penalties need to know of one growing text, kept so that no step reads it again."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Ngram = tuple[int, ...]
# Longer n-grams are looked for in the text instead: to keep each of a long text takes memory.
LONGEST = 16


class History:
    """Which tokens a text has, how often each was generated, and what its n-grams went on with.

    Each call takes what has been added since the one before, so a text must only grow.
    """

    def __init__(self) -> None:
        self._num_counted = self._num_joined = 0
        self._slots: dict[int, int] = {}  # Where each token is in the two arrays.
        self._tokens: NDArray[np.int64] = np.zeros(64, np.int64)
        self._counts: NDArray[np.float32] = np.zeros(64, np.float32)
        # The n-grams of a text, each with the token that came before its last one in its place; and
        # which last one was the latest, by the tokens before it.
        self._earlier: dict[Ngram, int | None] = {}
        self._latest: dict[Ngram, int] = {}

    def branch(self) -> "History":
        """A history that has come as far, and goes on by itself."""
        other = History()
        other._num_counted, other._num_joined = self._num_counted, self._num_joined
        other._slots = self._slots.copy()
        other._earlier, other._latest = self._earlier.copy(), self._latest.copy()
        other._tokens, other._counts = self._tokens.copy(), self._counts.copy()
        return other

    def count(
        self, tokens: Sequence[int], num_prompt_tokens: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The different tokens of a text, and how often each came behind its prompt.

        >>> tokens, counts = History().count([5, 6, 7, 6], num_prompt_tokens=2)
        >>> tokens.tolist(), counts.tolist()
        ([5, 6, 7], [0.0, 1.0, 1.0])
        """
        for place in range(self._num_counted, len(tokens)):
            token = tokens[place]
            slot = self._slots.setdefault(token, len(self._slots))
            if slot == len(self._tokens):
                self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._tokens[slot] = token
            self._counts[slot] += place >= num_prompt_tokens
        self._num_counted = len(tokens)
        return self._tokens[: len(self._slots)], self._counts[: len(self._slots)]

    def find_followers(self, tokens: Sequence[int], size: int) -> Iterator[int]:
        """The tokens that would make the last `size` of a text an n-gram that it has already.

        The size is the same every time.

        >>> sorted(History().find_followers([1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2], size=3))
        [3, 4]
        """
        if size > LONGEST:
            yield from scan_followers(tokens, size)
            return
        for end in range(max(self._num_joined, size - 1), len(tokens)):
            beginning, token = tuple(tokens[end + 1 - size : end]), tokens[end]
            if (*beginning, token) not in self._earlier:
                self._earlier[*beginning, token] = self._latest.get(beginning)
                self._latest[beginning] = token
        self._num_joined = len(tokens)
        last = tuple(tokens[len(tokens) + 1 - size :])
        follower = self._latest.get(last)
        while follower is not None:
            yield follower
            follower = self._earlier[*last, follower]


def scan_followers(tokens: Sequence[int], size: int) -> list[int]:
    """The same, found by going through the text, which is at least `size` tokens long."""
    text = np.array(tokens)
    ends = np.arange(size - 1, len(text))
    for back in range(1, size):
        ends = ends[text[ends - back] == text[-back]]
        if not len(ends):
            break
    followers: list[int] = np.unique(text[ends]).tolist()
    return followers
