"""The longest passages of a written text that are in a set, word for word, and where they are.

Of each token of the text, the longest row of tokens from there on that the set holds is found;
those that lie in no longer one are the passages, as OLMoTrace calls them maximal matching spans
(Liu et al. 2025, arXiv:2504.07096). The first are those least likely by chance: the product of the
shares of their tokens in the set is the smallest.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from shards.documents import Document, Sidecars
from shards.format import SPLITS, Int64
from shards.index.search import Matches, open_index
from shards.reader import Shards
from shards.tokenizer import load_checked_tokenizer, puts_space_before

# Of a text that is looked for; with more, the time grows with the square of what is word for word.
MAX_TEXT_TOKENS = 8192
MAX_TEXT_CHARACTERS = 1 << 18


@dataclass(frozen=True)
class Wish:
    """Which passages are wanted, and how many places of each."""

    # In tokens; a text that is shorter is looked for as a whole.
    min_tokens: int = 8
    passages: int = 10
    places: int = 10

    def __post_init__(self) -> None:
        for name, most in (("min_tokens", MAX_TEXT_TOKENS), ("passages", 1000), ("places", 1000)):
            value = getattr(self, name)
            if not 1 <= value <= most:
                raise ValueError(
                    f"--{name.replace('_', '-')} is {value!s:.60}; expected 1 to {most:,}"
                )


@dataclass(frozen=True)
class Place:
    """A place of a passage: its first token in its split's stream, and the document there."""

    split: str
    start: int
    document: Document


@dataclass(frozen=True)
class Passage:
    """A passage of a text that is in the set `count` times, and some of its places."""

    # Of the text, in characters.
    start: int
    stop: int
    num_tokens: int
    count: int
    places: tuple[Place, ...]


class TextTooLong(ValueError):
    """More text than is looked for at once."""


class Finder:
    """Finds passages of texts in one set.

    Raises ValueError with one line if the set has no index, or its tokenizer is not what made it.
    """

    def __init__(self, shards: Shards) -> None:
        self.index = open_index(shards)
        self.tokenizer: Tokenizer = load_checked_tokenizer(shards.folder, shards.manifest)
        self.sidecars = {split: Sidecars(shards, split) for split in SPLITS}
        self.takes_space = not puts_space_before(self.tokenizer)

    def find(self, text: str, wish: Wish, start: int = 0, stop: int | None = None) -> list[Passage]:
        """The wanted passages of a text, or of its tokens that hold any of [start, stop).

        Empty if there is none. Raises TextTooLong for a text that is.
        """
        ids, offsets = self.encode(text, start, len(text) if stop is None else stop)
        if not len(ids):
            return []
        longest = self.index.measure_matches(ids, np.arange(len(ids)))
        starts, sizes = choose_maximal(longest, min(wish.min_tokens, len(ids)))
        order = np.argsort(self.measure_chance(ids, starts, sizes), kind="stable")
        order = order[: wish.passages]
        starts, sizes = starts[order], sizes[order]
        return [
            Passage(
                int(offsets[first, 0]),
                int(offsets[first + size - 1, 1]),
                size,
                matches.count,
                self.locate(matches, wish.places),
            )
            for first, size, matches in zip(
                starts.tolist(), sizes.tolist(), self.index.find(ids, starts, sizes), strict=True
            )
        ]

    def encode(self, text: str, start: int, stop: int) -> tuple[Int64, Int64]:
        """The ids of a text that hold any of [start, stop), and the characters of each: (ids, 2).

        A text from the middle of another one is often a word that a space comes before there.
        Where more of it is in the set with a space before it, that is how it is looked for.
        """
        if len(text) > MAX_TEXT_CHARACTERS:
            raise TextTooLong(
                f"the text has {len(text):,} characters; expected at most {MAX_TEXT_CHARACTERS:,}"
            )
        plain = take_tokens(self.tokenizer.encode(text, add_special_tokens=False), start, stop)
        if len(plain[0]) > MAX_TEXT_TOKENS:
            raise TextTooLong(
                f"the text has {len(plain[0]):,} tokens; expected at most {MAX_TEXT_TOKENS:,}"
            )
        if start or not len(plain[0]) or not self.takes_space or text[:1].isspace():
            return plain
        encoding = self.tokenizer.encode(f" {text}", add_special_tokens=False)
        ids, offsets = take_tokens(encoding, 1, stop + 1)
        spaced = ids, np.maximum(offsets - 1, 0)
        return max(plain, spaced, key=self.measure_first)

    def measure_first(self, encoded: tuple[Int64, Int64]) -> int:
        """How many characters of a text, from its first on, are in the set in a row."""
        ids, offsets = encoded
        [size] = self.index.measure_matches(ids, np.zeros(1, np.int64)).tolist()
        return int(offsets[size - 1, 1]) if size else 0

    def measure_chance(self, ids: Int64, starts: Int64, sizes: Int64) -> npt.NDArray[np.float64]:
        """The logarithm of the product of the shares in the set of each span's tokens."""
        kinds, numbers = np.unique(ids, return_inverse=True)
        ones = np.ones(len(kinds), np.int64)
        found = self.index.find(kinds, np.arange(len(kinds)), ones)
        counts = np.array([max(matches.count, 1) for matches in found])
        sums = np.concatenate([[0], np.cumsum(np.log(counts / self.index.num_tokens)[numbers])])
        chances: npt.NDArray[np.float64] = sums[starts + sizes] - sums[starts]
        return chances

    def locate(self, matches: Matches, limit: int) -> tuple[Place, ...]:
        """The first places of a passage, in the index's order, with their documents."""
        places = []
        for split, start in matches.places(limit):
            [document] = self.sidecars[split].between(start, start + 1)
            places.append(Place(split, start, document))
        return tuple(places)


def take_tokens(encoding: Encoding, start: int, stop: int) -> tuple[Int64, Int64]:
    """The ids whose characters are among [start, stop), and the characters of each: (ids, 2)."""
    ids = np.array(encoding.ids, np.int64)
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    chosen = (offsets[:, 0] < stop) & (offsets[:, 1] > start)
    return ids[chosen], offsets[chosen]


def choose_maximal(longest: Int64, min_tokens: int) -> tuple[Int64, Int64]:
    """Where rows of at least `min_tokens` begin that lie in no longer one, and their sizes.

    >>> choose_maximal(np.array([3, 2, 1, 2, 4, 3, 2, 1]), 2)
    (array([0, 3, 4]), array([3, 2, 4]))
    """
    ends = np.arange(len(longest)) + longest
    is_new = ends > np.concatenate([[0], ends[:-1]])
    starts = np.flatnonzero(is_new & (longest >= min_tokens))
    return starts, longest[starts]
