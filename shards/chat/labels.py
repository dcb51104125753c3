"""Which tokens of chats are trained on, and where each chat begins: bits for every token.

    labels = open_labels(open_shards("chat/"), "train")
    labels.read(np.array([0, 2048]), 2048) & LOSS      # (2, 2048): the tokens that are targets

The sidecars are read once, at opening, and kept as ascending places: 16 bytes for each span that is
trained on, and 8 for each chat.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.chat.spans import read_chat_rows
from shards.format import Int64, check_split
from shards.reader import Shards
from shards.screen.names import quote

# The token counts as a target: it is part of what an assistant wrote.
LOSS = 1
# A chat begins here, or the second half of a pair, or padding.
BEGIN = 2
# The token is one of a rejected half.
REJECTED = 4

Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Labels:
    """The labels of one split's tokens, looked up by their places in its stream."""

    num_tokens: int
    # Where chats, second halves and paddings begin, ascending.
    begins: Int64
    # Where spans begin and end, in turn, ascending: what is trained on, and what is rejected.
    loss: Int64
    rejected: Int64

    def read(self, places: Int64, num_tokens: int) -> Bits:
        """The bits of windows of `num_tokens` that begin at `places`: (len(places), num_tokens).

        Raises ValueError for a window that the split does not hold.
        """
        wrong = places[(places < 0) | (places > self.num_tokens - num_tokens)]
        if len(wrong):
            raise ValueError(
                f"asked for the labels of tokens {wrong[0]} to {wrong[0] + num_tokens}; the split "
                f"has {self.num_tokens}"
            )
        bits = LOSS * mark_spans(self.loss, places, num_tokens)
        bits |= REJECTED * mark_spans(self.rejected, places, num_tokens)
        windows, columns = find_inside(self.begins, places, num_tokens)
        bits[windows, columns] |= BEGIN
        return bits


def open_labels(shards: Shards, split: str) -> Labels:
    """The labels of a split of a set of chats.

    Raises ValueError for a set without chats, and where a sidecar is damaged.
    """
    check_split(split)
    chat = shards.manifest.chat
    if chat is None:
        raise ValueError(
            f"{shards.folder}: is not a set of chats, so no token of it is marked as an answer; "
            f"make one with: velocity prep --chat --out {quote(shards.folder)} --input ..."
        )
    begins, loss, rejected, start = [], [], [], 0
    for shard in shards.manifest.split(split):
        for rows in read_chat_rows(shards.folder, shard, chat["kind"]):
            begins += [start + rows.bounds[:-1], start + rows.rejected[:, 0]]
            loss.append(start + rows.loss.ravel())
            rejected.append(start + rows.rejected.ravel())
        start += shard.num_tokens
    return Labels(start, np.sort(join(begins)), join(loss), join(rejected))


def join(parts: list[Int64]) -> Int64:
    """Arrays one behind another; of none, an empty one."""
    return np.concatenate([np.empty(0, np.int64), *parts])


def find_inside(marks: Int64, places: Int64, num_tokens: int) -> tuple[Int64, Int64]:
    """Which of the ascending marks lie in windows: the windows' numbers, and where in them."""
    first = np.searchsorted(marks, places)
    counts = np.searchsorted(marks, places + num_tokens) - first
    windows = np.repeat(np.arange(len(places)), counts)
    before = np.cumsum(counts) - counts
    found = marks[np.arange(len(windows)) + np.repeat(first - before, counts)]
    return windows, found - places[windows]


def mark_spans(edges: Int64, places: Int64, num_tokens: int) -> Bits:
    """1 for the tokens of windows that lie in spans, which begin and end in turn at `edges`."""
    windows, columns = find_inside(edges, places, num_tokens)
    turns = np.bincount(windows * num_tokens + columns, minlength=len(places) * num_tokens)
    # Whether a span is open where a window begins: an odd number of edges came before.
    is_open = np.searchsorted(edges, places) & 1
    parity = np.cumsum(turns.reshape(len(places), num_tokens) & 1, axis=1) + is_open[:, None]
    marks: Bits = (parity & 1).astype(np.uint8)
    return marks
