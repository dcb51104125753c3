"""Samples from the shards as batches on the device, read one step ahead.

Shapes: A micro-steps (gradient accumulation), R ranks, B samples per micro-step on a rank,
T tokens.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from shards.order import SampleOrder
from shards.reader import TokenStream


@dataclass(frozen=True)
class Dealing:
    """How a step's samples are dealt: micro-step by micro-step, rank by rank.

    They are cut into A x R runs of consecutive samples. Where they do not divide evenly, some have
    one sample more than others, and `weights` make the step's gradient the mean over its samples
    all the same. So a step has the same samples on any number of ranks.
    """

    # Over all ranks.
    samples_per_step: int
    accumulation_steps: int
    rank: int
    world_size: int

    def own_samples(self, consumed: int) -> list[npt.NDArray[np.int64]]:
        """This rank's samples in the step that starts after `consumed` samples: A times (B,).

        Where a micro-step has none for this rank, it gets the step's first, with weight 0: every
        rank must take part in every micro-step.

        >>> Dealing(8, accumulation_steps=2, rank=1, world_size=2).own_samples(100)
        [array([102, 103]), array([106, 107])]
        >>> uneven = Dealing(7, accumulation_steps=2, rank=1, world_size=2)
        >>> uneven.own_samples(100), uneven.weights
        ([array([101, 102]), array([105, 106])], [1.1428571428571428, 1.1428571428571428])
        """
        return [
            consumed + (np.arange(start, stop) if start < stop else np.zeros(1, np.int64))
            for start, stop in self._find_runs()
        ]

    @property
    def weights(self) -> list[float]:
        """For each micro-step, its samples by those that it would have if all had equally many."""
        runs = self.accumulation_steps * self.world_size
        return [(stop - start) * runs / self.samples_per_step for start, stop in self._find_runs()]

    def _find_runs(self) -> list[tuple[int, int]]:
        """Where the runs of this rank begin and end in a step, one for each micro-step."""
        runs = self.accumulation_steps * self.world_size
        bounds = [run * self.samples_per_step // runs for run in range(runs + 1)]
        starts = range(self.rank, runs, self.world_size)
        return [(bounds[run], bounds[run + 1]) for run in starts]


def read_samples(
    stream: TokenStream, order: SampleOrder, samples: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The windows of samples, in an array of any shape: (..., T + 1) ids."""
    windows = stream.windows(order.starts(samples.ravel()), order.max_seq_length + 1)
    return windows.reshape(*samples.shape, -1).astype(np.int64)


class Batches:
    """The micro-batches of one step after another; a thread reads the next step meanwhile."""

    def __init__(
        self,
        stream: TokenStream,
        order: SampleOrder,
        dealing: Dealing,
        device: torch.device,
        consumed: int,
    ) -> None:
        self.stream = stream
        self.order = order
        self.dealing = dealing
        self.device = device
        # Samples handed out so far, over all ranks: the only state there is.
        self.consumed = consumed
        self.wait_seconds = 0.0
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.ahead = self.reader.submit(self._read, consumed)

    def next_step(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The tokens and targets, (B, T) each, of every micro-step of the next step."""
        started = time.perf_counter()
        micro_batches = self.ahead.result()
        self.wait_seconds += time.perf_counter() - started
        self.consumed += self.dealing.samples_per_step
        self.ahead = self.reader.submit(self._read, self.consumed)
        for windows in micro_batches:
            batch = windows.to(self.device, non_blocking=True)
            yield batch[:, :-1], batch[:, 1:]

    def take_wait_seconds(self) -> float:
        """Time spent waiting for data since the last call."""
        seconds, self.wait_seconds = self.wait_seconds, 0.0
        return seconds

    def close(self) -> None:
        """Stop the reading thread."""
        self.reader.shutdown(wait=True, cancel_futures=True)

    def _read(self, consumed: int) -> tuple[torch.Tensor, ...]:
        samples = self.dealing.own_samples(consumed)
        windows = torch.from_numpy(read_samples(self.stream, self.order, np.concatenate(samples)))
        if self.device.type == "cuda":
            windows = windows.pin_memory()
        return windows.split_with_sizes([len(run) for run in samples])
