"""Looks for spans of tokens in a set's index: how often each occurs, and where.

    index = open_index(open_shards("shards/"))
    ids = np.array([464, 2068, 7586], np.int64)
    index.measure_matches(ids, np.arange(3))   # from each id on, how many are in the set in a row
    index.find(ids, np.array([0]), np.array([3]))[0].count

All spans are looked for at once, by bisection: about log2(tokens) rounds for each array, each of
which reads one place and the tokens there for each span. Before a place is given, the tokens there
are compared with the span.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.format import SPLITS, Int64
from shards.index.array import PlacesFile
from shards.index.contents import Arrays, read_index
from shards.reader import Shards, TokenStream

# Tokens that are compared in one go; most spans differ within them.
WINDOW = 64
# Before and after every id.
BELOW = -1


@dataclass(frozen=True)
class Spans:
    """Spans of a row of ids, which hold no end-of-document token: span i is of `sizes[i]` ids."""

    ids: Int64
    starts: Int64
    sizes: Int64

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, chosen: Int64) -> "Spans":
        """Some of them."""
        return Spans(self.ids, self.starts[chosen], self.sizes[chosen])

    def window(self, chosen: Int64, depth: Int64 | int, width: int) -> Int64:
        """`width` ids of each chosen span from its number `depth` on; past its end, BELOW."""
        columns = depth + np.arange(width)
        places = np.minimum(self.starts[chosen, None] + columns, len(self.ids) - 1)
        return np.where(columns < self.sizes[chosen, None], self.ids[places], BELOW)


@dataclass(frozen=True)
class Matches:
    """The places of one span, of which there are `count`: ranks of the index's arrays."""

    ids: Int64
    parts: tuple[tuple["SortedTokens", int, int], ...]

    @property
    def count(self) -> int:
        """How often the span occurs in the set."""
        return sum(high - low for _, low, high in self.parts)

    def places(self, limit: int) -> list[tuple[str, int]]:
        """Splits and positions in their streams of the first `limit` places in the index's order.

        Those of one array are ascending. Raises ValueError if an array is not in order.
        """
        found: list[tuple[str, int]] = []
        for part, low, high in self.parts:
            ranks = np.arange(low, min(high, low + limit - len(found)))
            found += [(part.split, place) for place in part.list_places(ranks, self.ids)]
        return found


class SortedTokens:
    """The tokens of one array, in the order of what follows them."""

    def __init__(self, split: str, stream: TokenStream, start: int, file: PlacesFile) -> None:
        self.split = split
        self.stream = stream
        self.start = start
        self.file = file

    def positions(self, ranks: Int64) -> Int64:
        """Where the suffixes with these ranks begin in their split's stream."""
        return self.start + self.file.read(ranks)

    def list_places(self, ranks: Int64, ids: Int64) -> list[int]:
        """Their positions, ascending; ValueError if `ids` is not what is there."""
        each = np.zeros(len(ranks), np.int64)
        signs, _ = self.compare(ranks, Spans(ids, each, each + len(ids)))
        if signs.any():
            raise self.file.make_error("its places are not in order")
        places: list[int] = np.sort(self.positions(ranks)).tolist()
        return places

    def measure(self, spans: Spans) -> Int64:
        """How many ids from the beginning of each span on are here in a row."""
        ranks = self.bisect(spans, is_after=False)
        longest = np.zeros(len(spans), np.int64)
        for beside in (ranks - 1, ranks):  # Nothing shares more with a span than its neighbours.
            inside = np.flatnonzero((beside >= 0) & (beside < self.file.num_tokens))
            _, shared = self.compare(beside[inside], spans.take(inside))
            longest[inside] = np.maximum(longest[inside], shared)
        return longest

    def bounds(self, spans: Spans) -> tuple[Int64, Int64]:
        """The ranks of the suffixes that begin with each span: the first, and that after them."""
        return self.bisect(spans, is_after=False), self.bisect(spans, is_after=True)

    def bisect(self, spans: Spans, is_after: bool) -> Int64:
        """The rank of the first suffix that comes after each span and, if `is_after`, all its own.

        Without `is_after`, of the first that does not come before it.
        """
        low = np.zeros(len(spans), np.int64)
        high = np.full(len(spans), self.file.num_tokens)
        while len(unsure := np.flatnonzero(low < high)):
            middle = (low[unsure] + high[unsure]) // 2
            signs, _ = self.compare(middle, spans.take(unsure))
            is_before = signs < is_after
            low[unsure[is_before]] = middle[is_before] + 1
            high[unsure[~is_before]] = middle[~is_before]
        return low

    def compare(self, ranks: Int64, spans: Spans) -> tuple[npt.NDArray[np.int8], Int64]:
        """Suffixes beside spans: -1 before, 0 begins with it, 1 after; and how many ids they share.

        A suffix of the set is read no further than its document: spans hold no token that ends one.
        """
        positions = self.positions(ranks)
        signs, shared = np.zeros(len(spans), np.int8), np.zeros(len(spans), np.int64)
        unsure, depth = np.arange(len(spans)), 0
        while len(unsure):
            width = min(WINDOW, int(spans.sizes[unsure].max()) - depth)
            there = self.read(positions[unsure] + depth, width)
            wanted = spans.window(unsure, depth, width)
            differs = np.concatenate([there != wanted, np.ones((len(unsure), 1), bool)], axis=1)
            first = differs.argmax(axis=1)
            shared[unsure] = depth + first
            rows = np.flatnonzero(shared[unsure] < np.minimum(spans.sizes[unsure], depth + width))
            columns = first[rows]
            signs[unsure[rows]] = np.sign(there[rows, columns] - wanted[rows, columns])
            depth += width
            unsure = unsure[(first == width) & (spans.sizes[unsure] > depth)]
        return signs, shared

    def read(self, positions: Int64, width: int) -> Int64:
        """`width` ids of the stream from each position on; past its end, BELOW."""
        # Many spans are compared with the same suffix, above all in the first rounds.
        places, inverse = np.unique(positions, return_inverse=True)
        fits = min(width, self.stream.num_tokens)
        starts = np.minimum(places, self.stream.num_tokens - fits)
        rows = np.full((len(places), width), BELOW, np.int64)
        rows[:, :fits] = self.stream.windows(starts, fits)
        for row in np.flatnonzero(starts < places).tolist():
            cut = int(places[row] - starts[row])
            rows[row] = np.concatenate([rows[row, cut:], np.full(cut, BELOW)])
        return rows[inverse]


class SetIndex:
    """The index of a set."""

    def __init__(self, parts: list[SortedTokens]) -> None:
        self.parts = parts

    @property
    def num_tokens(self) -> int:
        """The tokens of the set, in both splits."""
        return sum(part.file.num_tokens for part in self.parts)

    def measure_matches(self, ids: Int64, starts: Int64) -> Int64:
        """From each of these places of a row of ids on, how many are in the set in a row."""
        spans = Spans(ids, starts, len(ids) - starts)
        longest = np.zeros(len(starts), np.int64)
        for part in self.parts:
            longest = np.maximum(longest, part.measure(spans))
        return longest

    def find(self, ids: Int64, starts: Int64, sizes: Int64) -> list[Matches]:
        """Where the spans of a row of ids are that begin at `starts` and have these sizes."""
        spans = Spans(ids, starts, sizes)
        found: list[list[tuple[SortedTokens, int, int]]] = [[] for _ in range(len(spans))]
        for part in self.parts:
            low, high = part.bounds(spans)
            for number in np.flatnonzero(low < high).tolist():
                found[number].append((part, int(low[number]), int(high[number])))
        return [
            Matches(ids[start : start + size], tuple(parts))
            for start, size, parts in zip(starts, sizes, found, strict=True)
        ]


def open_index(shards: Shards) -> SetIndex:
    """Open a set's index; ValueError with one line if it has none of this version."""
    arrays = read_index(shards.folder, shards.manifest)
    return SetIndex([*open_parts(shards, arrays)])


def open_parts(shards: Shards, arrays: Arrays) -> Iterator[SortedTokens]:
    """The arrays of an index, those of train first."""
    for split in SPLITS:
        stream = shards.stream(split)
        begins = {
            s.name: int(at) for s, at in zip(stream.shards, stream.shard_starts, strict=False)
        }
        for entry, digests in arrays.items():
            if entry.shard.split == split:
                file = PlacesFile(shards.folder, entry, digests)
                yield SortedTokens(split, stream, begins[entry.shard.name] + entry.first, file)
