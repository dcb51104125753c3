"""Batches divided among the ranks of a run, after which each rank has all results.

Batch k is computed by rank k modulo their number, and results stand in the batches' order: sums
over them are the same on any number of ranks, to the last bit.

K numbers are found for each row of a batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from train.ranks.distributed import Rank

BatchT = TypeVar("BatchT", bound=Sized)
Float64 = npt.NDArray[np.float64]


class Stopped(Exception):
    """A stop was asked for meanwhile, on some rank."""


@dataclass(frozen=True)
class Dealer:
    """Deals batches out, computed under `autocast`; all ranks must call it together."""

    rank: Rank
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    is_stopping: Callable[[], bool] = lambda: False
    # Whether progress is drawn: a run has a line of its own.
    shows_progress: bool = False

    def compute(
        self,
        what: str,
        batches: Iterable[BatchT],
        width: int,
        compute: Callable[[BatchT], Float64],
    ) -> Iterator[tuple[BatchT, Float64]]:
        """Each batch with what `compute` makes of it, (len(batch), width); `what` it is, in words.

        A model that is cut up over the ranks is gathered by all of them together, so a rank with no
        batch left takes one that does not count. Raises Stopped on all ranks if one is to stop.
        """
        waiting = iter(batches)
        is_long = True  # The first one may compile.
        while dealt := [*islice(waiting, self.rank.world_size)]:
            self.rank.place.enter(what, is_long)
            is_long = False
            with torch.no_grad(), self.autocast():
                found = compute(dealt[min(self.rank.rank, len(dealt) - 1)])
            yield from zip(dealt, self._exchange(dealt, found, width), strict=True)

    def _exchange(self, dealt: Sequence[Sized], found: Float64, width: int) -> list[Float64]:
        """What was found of each of the dealt batches, in their order."""
        if self.rank.world_size == 1:
            if self.is_stopping():
                raise Stopped
            return [found]
        num_rows = max(len(batch) for batch in dealt)
        sent = np.zeros(1 + num_rows * width)
        sent[0] = self.is_stopping()
        sent[1 : 1 + found.size] = found.ravel()
        rows = np.array(self.rank.gather(torch.from_numpy(sent).to(self.rank.device)))
        if rows[:, 0].any():
            raise Stopped
        return [
            row[1:].reshape(num_rows, width)[: len(batch)]
            for row, batch in zip(rows, dealt, strict=False)
        ]


def make_lone_dealer(device: torch.device) -> Dealer:
    """One for a process that is no run."""
    return Dealer(Rank(0, 1, 0, device), shows_progress=True)
