"""The windows in which tokens are predicted, and the batches in which windows are computed.

A window of T reads T tokens and predicts the T that follow each of them. Windows that begin S
tokens after each other, with S < T, overlap: each then counts only what none before it predicted.

B windows of a batch, T tokens of a window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from shards.documents import Document, Sidecars
from shards.format import Int64, Manifest
from shards.inspect.stats import PADDING, REMOVED
from shards.reader import Shards, TokenStream
from shards.tokenizer import encode_plainly
from train.chat.labels import Bits, open_chat_marking


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
    # (B, T + 1): the bits of shards/chat/labels.py, of a set of chats.
    labels: Bits | None = None
    # (B, T): which of the predicted tokens are in a training set, if that was asked.
    seen: npt.NDArray[np.bool_] | None = None

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


def cut_split(
    manifest: Manifest, split: str, length: int, stride: int
) -> tuple[int, Iterator[Window]]:
    """How many whole windows a split has, and these.

    Those of a packed set are its rows, each read and predicted without the next one.
    """
    num_tokens, row_tokens = manifest.num_tokens(split), manifest.row_tokens
    if row_tokens is None:
        windows = cut_windows(num_tokens - 1, length, stride, keeps_rest=False)
        return count_windows(num_tokens - 1, length, stride), windows
    rows = (Window(start, row_tokens - 1) for start in range(0, num_tokens, row_tokens))
    return num_tokens // row_tokens, rows


def count_windows(num_predicted: int, length: int, stride: int) -> int:
    """How many of these are whole."""
    return max(0, (num_predicted - length) // stride + 1)


def group_windows(windows: Iterator[Window], batch_size: int) -> Iterator[list[Window]]:
    """The windows in their order, as groups of one size."""
    for _, alike in groupby(windows, lambda window: window.size):
        while group := [*islice(alike, batch_size)]:
            yield group


def read_text_batches(
    name: str,
    ids: Int64,
    length: int,
    stride: int,
    batch_size: int,
    seen: npt.NDArray[np.bool_] | None = None,
) -> Iterator[Batch]:
    """The batches of one document, of which all ids but the first are predicted, once each.

    `seen` says of each of these whether it is in a training set.
    """
    windows = cut_windows(len(ids) - 1, length, stride, keeps_rest=True)
    for group in group_windows(windows, batch_size):
        size = group[0].size
        tokens = np.stack([ids[window.start : window.start + size + 1] for window in group])
        old = np.array([window.num_old for window in group])
        sources = np.zeros((len(group), size), np.intp)
        found = None
        if seen is not None:
            found = np.stack([seen[window.start : window.start + size] for window in group])
        yield Batch(tokens, old, sources, [name], seen=found)


def read_set_batches(
    shards: Shards, split: str, windows: Iterator[Window], batch_size: int
) -> Iterator[Batch]:
    """The batches of a split, each token with the source of its document."""
    stream, sidecars = shards.stream(split, checks_first_reads=True), Sidecars(shards, split)
    marking = open_chat_marking(shards, split)
    for group in group_windows(windows, batch_size):
        size, starts = group[0].size, find_starts(group)
        tokens = read_windows(stream, group)
        documents = sidecars.covering(group[0].start, group[-1].start + size + 1)
        origins = [name_origin(document) for document in documents]
        names = sorted(set(origins))
        codes = np.array([names.index(name) for name in origins])
        stops = np.array([document.stop for document in documents])
        places = starts[:, None] + np.arange(1, size + 1)
        sources = codes[np.searchsorted(stops, places, side="right")]
        old = np.array([window.num_old for window in group])
        labels = None if marking is None else marking.read(starts, tokens)
        yield Batch(tokens, old, sources, names, labels)


def name_origin(document: Document) -> str:
    """The source that a document's tokens count for."""
    if document.is_padding:
        return PADDING
    return REMOVED if document.is_blank else document.source_file


def read_windows(stream: TokenStream, group: Sequence[Window]) -> Int64:
    """The tokens (B, T + 1) of windows of one size."""
    return stream.windows(find_starts(group), group[0].size + 1).astype(np.int64)


def find_starts(group: Sequence[Window]) -> Int64:
    """Where windows begin."""
    return np.array([window.start for window in group], np.int64)


def check_tokenizer(shards: Shards, tokenizer: Tokenizer, num_ids: int, whose: str) -> None:
    """ValueError if the ids of a set are not those of a model with this tokenizer."""
    cases = shards.manifest.content["tokenizer"]["self_test"]
    fits = all(encode_plainly(tokenizer, case["text"]) == case["ids"] for case in cases)
    if not fits or shards.manifest.vocab_size > num_ids:
        raise ValueError(
            f"{shards.folder}: was made with another tokenizer than {whose}; prepare the same "
            "texts with that one, or give them to velocity eval with --text"
        )
