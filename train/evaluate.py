"""The validation loss: the same consecutive windows for every run, split over the ranks."""

from collections.abc import Callable

import numpy as np
import torch

from model.transformer import Transformer
from shards.reader import TokenStream
from train.ranks.distributed import Rank
from train.step.precision import Autocast


def count_windows(stream: TokenStream, max_seq_length: int, wanted: int) -> int:
    """How many windows the validation loss is taken over: `wanted`, or as many as there are."""
    return min(wanted, max(stream.num_tokens - 1, 0) // max_seq_length)


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
) -> float | None:
    """The mean loss over the first `num_windows` windows of a split.

    None if there are no windows, or if a stop was requested meanwhile.
    """
    if num_windows == 0:
        return None
    total = 0.0
    for first in range(0, num_windows, batch_size * rank.world_size):
        rank.place.enter("the validation loss", is_long=first == 0)  # The first one may compile.
        if rank.sum(is_stopping())[0]:
            return None
        own = np.arange(first + rank.rank * batch_size, first + (rank.rank + 1) * batch_size)
        own = own[own < num_windows]
        # A rank with none left takes one that does not count: a model that is cut up over the ranks
        # is gathered by all of them together.
        taken = own if len(own) else np.zeros(1, dtype=np.int64)
        windows = stream.windows(taken * max_seq_length, max_seq_length + 1).astype(np.int64)
        batch = torch.from_numpy(windows).to(rank.device)
        with autocast():
            loss = float(model(batch[:, :-1], batch[:, 1:]))
        if len(own):
            total += loss * len(own)
    return rank.sum(total)[0] / num_windows
