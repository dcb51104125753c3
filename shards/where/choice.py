"""Which documents of a split are chosen, as runs of its tokens; all of them where none are asked.

Chosen documents that are neighbors make one run, so that a choice takes 16 bytes for each run. Its
tokens are counted as if they lay one after another: those are the positions of the choice.

    split    |..aaaa....bbbbbb..cc....|      three runs
    choice   |aaaabbbbbbcc|                  bounds 0, 4, 10, 12
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from shards.disk.json_files import Json
from shards.format import Int64, Shard
from shards.reader import Shards
from shards.rows import read_rows
from shards.sidecar import Marks, count_tokens, is_padding
from shards.where.condition import Condition, parse_condition
from shards.where.marks import mark_rows

# Sidecars read at a time: most of it is waiting for a disk.
THREADS = 8


@dataclass(frozen=True)
class Choice:
    """Runs of a split's tokens, ascending; each holds whole documents."""

    # Where each run begins in the split's stream.
    starts: Int64
    # Where each begins in the choice, and behind them where it ends.
    bounds: Int64
    num_documents: int
    # Of the split.
    all_documents: int
    all_tokens: int
    # The condition; None = all documents are chosen.
    where: str | None = None

    @property
    def num_tokens(self) -> int:
        """How many tokens are chosen."""
        return int(self.bounds[-1])

    @cached_property
    def counts(self) -> Json | None:
        """What a checkpoint keeps of it, to tell later whether it is still the same."""
        if self.where is None:
            return None
        places = hashlib.sha256(self.starts.astype("<i8").data)
        places.update(self.bounds.astype("<i8").data)
        counts = {"documents": self.num_documents, "tokens": self.num_tokens}
        return counts | {"sha256": places.hexdigest()}

    def is_same(self, other: "Choice") -> bool:
        """Whether the same tokens of the split are chosen."""
        return np.array_equal(self.starts, other.starts) and np.array_equal(
            self.bounds, other.bounds
        )

    def cut(self, starts: Int64, count: int) -> tuple[Int64, Int64, Int64, Int64]:
        """The pieces of windows of `count` tokens that begin at these positions of the choice.

        For each piece: its window's number, its place in the window, its length, and where it
        begins in the split. The windows lie in the choice.
        """
        first = np.searchsorted(self.bounds, starts, side="right") - 1
        last = np.searchsorted(self.bounds, starts + count, side="left") - 1
        sizes = last - first + 1
        windows = np.repeat(np.arange(len(starts)), sizes)
        before = np.cumsum(sizes) - sizes
        runs = first[windows] + np.arange(len(windows)) - before[windows]
        begins = np.maximum(starts[windows], self.bounds[runs])
        ends = np.minimum(starts[windows] + count, self.bounds[runs + 1])
        places = self.starts[runs] + begins - self.bounds[runs]
        return windows, begins - starts[windows], ends - begins, places

    def spans(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Where the tokens [start, stop) of the choice are in the split, piece by piece."""
        _, _, lengths, places = self.cut(np.array([start]), stop - start)
        pairs = zip(places.tolist(), lengths.tolist(), strict=True)
        return [(place, place + length) for place, length in pairs]

    def inside(self, start: int, stop: int) -> tuple[int, int]:
        """Where the tokens [start, stop) of the split are in the choice; empty if none is chosen.

        What is chosen of them is in one piece there.
        """
        return self._find(start), self._find(stop)

    def leaves_out(self, start: int, stop: int) -> bool:
        """Whether the condition left all of [start, stop) out; False for tokens appended later."""
        first, last = self.inside(start, stop)
        return self.where is not None and start < self.all_tokens and first == last

    def _find(self, place: int) -> int:
        """How many tokens before this place of the split are chosen."""
        run = int(np.searchsorted(self.starts, place, side="right")) - 1
        if run < 0:
            return 0
        return int(min(self.bounds[run] + place - self.starts[run], self.bounds[run + 1]))


def choose(shards: Shards, split: str, where: str | None, num_tokens: int | None = None) -> Choice:
    """The documents of a split that meet a condition, or without one all of them.

    With `num_tokens`, of the split's first so many tokens alone: those that an earlier version had.
    Only the columns that the condition names are read, and where documents begin. Raises
    ValueError, with one line, for a condition that the set has not the columns for, and for
    sidecars that are missing or damaged.
    """
    chosen: list[Shard] = []
    start = 0
    for shard in shards.manifest.split(split):
        if num_tokens is None or start < num_tokens:
            chosen.append(shard)
        start += shard.num_tokens
    documents = sum(shard.num_documents for shard in chosen)
    tokens = sum(shard.num_tokens for shard in chosen)
    if where is None:
        bounds = np.array([0, tokens], np.int64)
        return Choice(np.zeros(1, np.int64), bounds, documents, documents, tokens)
    condition = parse_condition(where)
    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(lambda shard: choose_in_shard(shards, shard, condition), chosen))
    offsets = np.cumsum([0, *(shard.num_tokens for shard in chosen)])
    runs = join_runs([part + offset for (_, part), offset in zip(found, offsets[:-1], strict=True)])
    bounds = np.concatenate([[0], np.cumsum(runs[:, 1] - runs[:, 0])]).astype(np.int64)
    num_documents = sum(count for count, _ in found)
    return Choice(runs[:, 0].copy(), bounds, num_documents, documents, tokens, where)


def choose_windows(
    shards: Shards, where: str | None, max_seq_length: int, num_tokens: int | None = None
) -> Choice:
    """What a run with data.where reads of the train split, or of its first `num_tokens`.

    Raises ValueError as `choose` does, for a packed set, and if too little is chosen for two
    windows; where all is, the order of samples refuses that.
    """
    if where is not None and shards.manifest.row_tokens is not None:
        raise ValueError(
            f"{shards.folder}: is packed, and its rows are read whole, so data.where cannot choose "
            "among their documents; leave it out, or choose when the set is made, by prep's --where"
        )
    choice = choose(shards, "train", where, num_tokens)
    if where is not None and choice.num_tokens < 2 * max_seq_length:
        raise ValueError(
            f"{shards.folder}: data.where chooses {describe_choice(choice)}; windows of "
            f"data.max_seq_length={max_seq_length} need at least {2 * max_seq_length:,} tokens, so "
            "choose more, or set a shorter length"
        )
    return choice


def describe_choice(choice: Choice) -> str:
    """How much of a split is chosen: documents, and their share of its tokens."""
    share = choice.num_tokens / max(choice.all_tokens, 1)
    return (
        f"{choice.num_documents:,} of {choice.all_documents:,} documents, {choice.num_tokens:,} of "
        f"{choice.all_tokens:,} tokens ({share:.2%})"
    )


def choose_in_shard(shards: Shards, shard: Shard, condition: Condition) -> tuple[int, Int64]:
    """How many of a shard's documents meet a condition, and the runs of tokens that they make."""
    parts, num_documents, start = [], 0, 0
    for rows, marks in mark_documents(shards, shard, condition):
        sizes = count_tokens(rows)
        num_documents += int(marks.sum())
        parts.append(find_runs(sizes, marks) + start)
        start += int(sizes.sum())
    return num_documents, join_runs(parts)


def mark_documents(
    shards: Shards, shard: Shard, condition: Condition, columns: Sequence[str] = ()
) -> Iterator[tuple[pa.RecordBatch, Marks]]:
    """A shard's rows, many at a time, and which of them meet a condition.

    They have num_tokens, the columns that the condition names, and `columns`.
    """
    packed = ["source_file"] * (shard.num_paddings > 0)
    names = list(dict.fromkeys(["num_tokens", *condition.columns, *columns, *packed]))
    for rows in read_rows(shards.folder, shard, names):
        try:
            marks = mark_rows(condition, rows)
        except ValueError as error:
            raise ValueError(f"{shards.folder / shard.sidecar}: {error}") from None
        yield rows, marks & ~is_padding(rows) if packed else marks


def find_runs(sizes: Int64, marks: Marks) -> Int64:
    """Where runs of marked documents with so many tokens begin and end: (runs, 2).

    >>> find_runs(np.array([3, 4, 5, 6]), np.array([True, True, False, True])).tolist()
    [[0, 7], [12, 18]]
    """
    edges = np.flatnonzero(np.diff(marks, prepend=False, append=False))
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    runs: Int64 = ends[edges].reshape(-1, 2)
    return runs


def join_runs(parts: list[Int64]) -> Int64:
    """Runs one after another, (runs, 2) each, as one array; those that touch become one.

    >>> join_runs([np.array([[0, 3], [5, 7]]), np.array([[7, 9]])]).tolist()
    [[0, 3], [5, 9]]
    """
    runs = np.concatenate([np.empty((0, 2), np.int64), *parts])
    if len(runs):
        is_new = np.append(True, runs[1:, 0] != runs[:-1, 1])
        is_last = np.append(is_new[1:], True)
        runs = np.stack([runs[is_new, 0], runs[is_last, 1]], axis=1)
    return runs
