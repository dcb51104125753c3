"""The validation loss: the same consecutive windows for every run, split over the ranks."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from model.transformer import Transformer
from shards.mixture.sets import Sets
from shards.reader import TokenStream
from train.chat.labels import Marking, has_chats, open_marking
from train.preferences.learn import Preferences
from train.preferences.pairs import count_pairs
from train.ranks.distributed import Rank
from train.step.precision import Autocast
from train.targets import count_targets, split_windows

# The tokens of a split, and what makes the labels of its rows.
Split = tuple[TokenStream, Marking | None]


def open_validation(sets: Sets, checks_first_reads: bool) -> list[Split]:
    """The validation splits of a run's sets, with the labels of their rows if it reads chats."""
    marks = has_chats(sets)
    return [
        (
            source.stream("validation", checks_first_reads),
            open_marking(source.shards, "validation") if marks else None,
        )
        for source in sets.sources
    ]


def count_windows(
    stream: TokenStream, max_seq_length: int, wanted: int, padding: int | None = None
) -> int:
    """How many windows the validation loss is taken over: `wanted`, or as many as there are.

    `padding` is what pads the rows of a packed set.
    """
    num_starts = stream.num_tokens - (padding is None)
    return min(wanted, max(num_starts, 0) // max_seq_length)


@torch.no_grad()
def evaluate(
    model: Transformer,
    stream: TokenStream,
    num_windows: int,
    batch_size: int,
    max_seq_length: int,
    rank: Rank,
    autocast: Autocast,
    is_stopping: Callable[[], bool],
    padding: int | None = None,
    marking: Marking | None = None,
    preferences: Preferences | None = None,
) -> list[float] | None:
    """The mean loss over the targets of the first `num_windows` windows of a split, in a list.

    In a packed set, whose rows end in `padding`, they are rows, and padding does not count; nor
    does what `marking`, if the run reads chats, says. Of `preferences`, the mean over pairs, and
    behind it their metrics. None if there are no windows, or if a stop was requested meanwhile.
    """
    if num_windows == 0:
        return None
    totals, num_counted = np.zeros(1 + (len(preferences.metrics) if preferences else 0)), 0
    window_tokens = max_seq_length + (padding is None)
    for first in range(0, num_windows, batch_size * rank.world_size):
        rank.place.enter("the validation loss", is_long=first == 0)  # The first one may compile.
        if rank.sum(is_stopping())[0]:
            return None
        own = np.arange(first + rank.rank * batch_size, first + (rank.rank + 1) * batch_size)
        own = own[own < num_windows]
        # A rank with none left takes one that does not count: a model that is cut up over the ranks
        # is gathered by all of them together.
        taken = own if len(own) else np.zeros(1, dtype=np.int64)
        windows = stream.windows(taken * max_seq_length, window_tokens).astype(np.int64)
        rows, labels = torch.from_numpy(windows), None
        if marking is not None:
            labels = torch.from_numpy(marking.read(taken * max_seq_length, windows))
        # Windows of as many targets each count for one, as they always did.
        count = len(own)
        if padding is not None:
            count = count_own(rows, padding, labels, len(own), preferences is not None)
        batch = split_windows(
            rows.to(rank.device), padding, None if labels is None else labels.to(rank.device)
        )
        with autocast():
            if preferences:
                losses = preferences.lose(model, batch)
            else:
                options = {"has_ignored": padding is not None, "firsts": batch.firsts}
                losses = model(batch.tokens, batch.targets, **options)
        found = losses.reshape(-1).tolist()
        if count:
            totals += np.array(found) * count
            num_counted += count
    *sums, counted = rank.sum(*totals.tolist(), num_counted)
    return [total / max(counted, 1) for total in sums]


def count_own(
    rows: Tensor, padding: int, labels: Tensor | None, num_rows: int, has_pairs: bool
) -> int:
    """How many targets of the first `num_rows` rows count; of preferences, how many pairs."""
    if has_pairs:
        assert labels is not None
        return count_pairs(labels[:num_rows])
    return count_targets(rows[:num_rows], padding, None if labels is None else labels[:num_rows])


def pick(found: Sequence[list[float] | None], place: int) -> list[float | None]:
    """Of what was found of several sets, what is at this place of each."""
    return [each[place] if each else None for each in found]
