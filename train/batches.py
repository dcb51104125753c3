"""Samples from the shards as batches on the device, read one step ahead.

Shapes: A micro-steps (gradient accumulation), B samples per micro-step on a rank, T tokens.
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
    """How a step's samples are dealt: micro-step by micro-step, rank by rank, B at a time."""

    batch_size: int
    accumulation_steps: int
    rank: int
    world_size: int

    @property
    def samples_per_step(self) -> int:
        """Samples per step, over all ranks."""
        return self.batch_size * self.accumulation_steps * self.world_size

    def own_samples(self, consumed: int) -> npt.NDArray[np.int64]:
        """This rank's samples (A, B) in the step that starts after `consumed` samples.

        >>> Dealing(batch_size=2, accumulation_steps=2, rank=1, world_size=2).own_samples(100)
        array([[102, 103],
               [106, 107]])
        """
        shape = (self.accumulation_steps, self.world_size, self.batch_size)
        samples = consumed + np.arange(self.samples_per_step).reshape(shape)
        return samples[:, self.rank]


def read_samples(
    stream: TokenStream, order: SampleOrder, samples: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The windows of (A, B) samples: (A, B, T + 1) ids."""
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
        # The windows (A, B, T + 1) of the step that was handed out last.
        self.windows = torch.empty(0)
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.ahead = self.reader.submit(self._read, consumed)

    def next_step(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The tokens and targets, (B, T) each, of every micro-step of the next step."""
        started = time.perf_counter()
        self.windows = self.ahead.result()
        self.wait_seconds += time.perf_counter() - started
        self.consumed += self.dealing.samples_per_step
        self.ahead = self.reader.submit(self._read, self.consumed)
        return self.repeat_step()

    def repeat_step(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What `next_step` gave last, again."""
        for window in self.windows:
            batch = window.to(self.device, non_blocking=True)
            yield batch[:, :-1], batch[:, 1:]

    def take_wait_seconds(self) -> float:
        """Time spent waiting for data since the last call."""
        seconds, self.wait_seconds = self.wait_seconds, 0.0
        return seconds

    def close(self) -> None:
        """Stop the reading thread."""
        self.reader.shutdown(wait=True, cancel_futures=True)

    def _read(self, consumed: int) -> torch.Tensor:
        samples = self.dealing.own_samples(consumed)
        windows = torch.from_numpy(read_samples(self.stream, self.order, samples))
        return windows.pin_memory() if self.device.type == "cuda" else windows
