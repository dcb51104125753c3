"""The windows in which tokens are predicted, and the batches in which windows are computed.

A window of T reads T tokens and predicts the T that follow each of them. Windows that begin S
tokens after each other, with S < T, overlap: each then counts only what none before it predicted.

B windows of a batch, T tokens of a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import numpy.typing as npt

from shards.documents import Document, Sidecars
from shards.format import Int64
from shards.inspect.stats import PADDING, REMOVED
from shards.reader import Shards


@dataclass(frozen=True)
class Window:
    """Tokens [start, start + size] of a row: the last is only predicted, the first only read.

    The first `num_old` predictions do not count.
    """

    start: int
    size: int
    num_old: int = 0


@dataclass(frozen=True)
class Batch:
    """Windows of one size."""

    tokens: Int64  # (B, T + 1)
    num_old: Int64  # (B,)
    # (B, T): which of the sources each predicted token is from.
    sources: npt.NDArray[np.intp]
    names: list[str]
    # (B, T): which predictions are of padding, in rows of a packed set; None = there is none.
    is_padding: npt.NDArray[np.bool_] | None = None

    @property
    def is_counted(self) -> npt.NDArray[np.bool_]:
        """Which predictions count: (B, T)."""
        is_new = np.arange(self.sources.shape[1]) >= self.num_old[:, None]
        return is_new if self.is_padding is None else is_new & ~self.is_padding

    def __len__(self) -> int:
        return len(self.tokens)


def cut_windows(num_predicted: int, length: int, stride: int, keeps_rest: bool) -> Iterator[Window]:
    """The windows over a row of `num_predicted` + 1 tokens.

    At its end there may be a shorter one, which is left out unless it `keeps_rest`.

    >>> [*cut_windows(7, 4, 4, keeps_rest=True)]
    [Window(start=0, size=4, num_old=0), Window(start=4, size=3, num_old=0)]
    >>> [*cut_windows(7, 4, 2, keeps_rest=False)]
    [Window(start=0, size=4, num_old=0), Window(start=2, size=4, num_old=2)]
    """
    done = 0
    for start in range(0, num_predicted, stride):
        size = min(length, num_predicted - start)
        if done == num_predicted or (size < length and not keeps_rest):
            return
        yield Window(start, size, done - start)
        done = start + size


def cut_rows(num_tokens: int, row_tokens: int) -> Iterator[Window]:
    """The rows of a packed split as windows, which never reach into the next one."""
    for start in range(0, num_tokens, row_tokens):
        yield Window(start, row_tokens - 1)


def count_windows(num_predicted: int, length: int, stride: int) -> int:
    """How many of these are whole."""
    return max(0, (num_predicted - length) // stride + 1)


def group_windows(windows: Iterator[Window], batch_size: int) -> Iterator[list[Window]]:
    """The windows in their order, as groups of one size."""
    for _, alike in groupby(windows, lambda window: window.size):
        while group := [*islice(alike, batch_size)]:
            yield group


def read_text_batches(
    name: str, ids: Int64, length: int, stride: int, batch_size: int
) -> Iterator[Batch]:
    """The batches of one document, of which all ids but the first are predicted, once each."""
    windows = cut_windows(len(ids) - 1, length, stride, keeps_rest=True)
    for group in group_windows(windows, batch_size):
        size = group[0].size
        tokens = np.stack([ids[window.start : window.start + size + 1] for window in group])
        old = np.array([window.num_old for window in group])
        yield Batch(tokens, old, np.zeros((len(group), size), np.intp), [name])


def read_set_batches(
    shards: Shards, split: str, windows: Iterator[Window], batch_size: int
) -> Iterator[Batch]:
    """The batches of a split, each token with the source of its document."""
    stream, sidecars = shards.stream(split, checks_first_reads=True), Sidecars(shards, split)
    for group in group_windows(windows, batch_size):
        size = group[0].size
        starts = np.array([window.start for window in group])
        tokens = stream.windows(starts, size + 1).astype(np.int64)
        documents = sidecars.covering(group[0].start, group[-1].start + size + 1)
        origins = [name_origin(document) for document in documents]
        names = sorted(set(origins))
        codes = np.array([names.index(name) for name in origins])
        stops = np.array([document.stop for document in documents])
        places = starts[:, None] + np.arange(1, size + 1)
        sources = codes[np.searchsorted(stops, places, side="right")]
        old = np.array([window.num_old for window in group])
        is_padding = sources == names.index(PADDING) if PADDING in names else None
        yield Batch(tokens, old, sources, names, is_padding)


def name_origin(document: Document) -> str:
    """The source that a document's tokens count for."""
    if document.is_padding:
        return PADDING
    return REMOVED if document.is_blank else document.source_file
