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

from shards.mixture.sets import MixedOrder
from shards.mixture.stream import MixedStream
from shards.order import SampleOrder
from shards.reader import TokenStream
from train.chat.labels import Marking
from train.config import Config
from train.preferences.pairs import count_pairs
from train.ranks.distributed import Rank
from train.targets import MicroBatch, count_targets, split_windows

# Of one set, or of all sets of a run.
Stream = TokenStream | MixedStream
Order = SampleOrder | MixedOrder
# The windows of a step, and the labels of rows of chats.
Read = tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...] | None]
# Samples whose places are found together.
SAMPLES_AT_ONCE = 4096


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


def find_dealing(config: Config, rank: Rank, step: int) -> Dealing:
    """How step number `step` of a run, counted from 0, is dealt; the settings are settled."""
    num_samples = config.samples_of_step(step, rank.world_size)
    micro_steps = config.micro_steps_of(num_samples, rank.world_size)
    return Dealing(num_samples, micro_steps, rank.rank, rank.world_size)


class Places:
    """Where the windows of one step after another begin, for one rank.

    They are found for many steps at once: the permutation's some sixty operations on arrays take as
    long for thousands of samples as for a few.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.dealing: Dealing | None = None
        # The places that were found, for steps that start after so many samples.
        self.found: dict[int, npt.NDArray[np.int64]] = {}

    def take(self, consumed: int, dealing: Dealing) -> npt.NDArray[np.int64]:
        """The places (A * B,) of this rank's samples in the step after `consumed` samples."""
        if consumed not in self.found or dealing != self.dealing:
            self.dealing = dealing
            own = np.concatenate(dealing.own_samples(0))
            num_steps = -(-SAMPLES_AT_ONCE // len(own))
            steps = consumed + np.arange(num_steps) * dealing.samples_per_step
            places = self.order.starts((steps[:, None] + own).ravel())
            self.found = dict(zip(steps.tolist(), places.reshape(num_steps, -1), strict=True))
        return self.found.pop(consumed)


class Batches:
    """The micro-batches of one step after another; a thread reads the next step meanwhile."""

    def __init__(
        self,
        stream: Stream,
        order: Order,
        dealing: Dealing,
        device: torch.device,
        consumed: int,
        padding: int | None = None,
        marking: Marking | None = None,
    ) -> None:
        self.stream = stream
        self.places = Places(order)
        # That of the step that was handed out last, and of the one that is read ahead.
        self.dealing = self.next_dealing = dealing
        self.device = device
        self.num_tokens = order.window_tokens
        # The token that rows of a packed set are padded with.
        self.padding = padding
        # What makes the labels of rows, if the run reads chats.
        self.marking = marking
        # Samples handed out so far, over all ranks: the only state there is.
        self.consumed = consumed
        self.wait_seconds = 0.0
        # The windows (A, B, T + 1), or rows (A, B, T), of the step that was handed out last.
        self.windows: tuple[torch.Tensor, ...] = ()
        # The labels (A, B, T) of these rows, if the run reads chats; on the host, as those are.
        self.labels: tuple[torch.Tensor, ...] | None = None
        # How many targets counted in that step, over all ranks; where all do, this is not counted.
        self.num_targets: int | None = None
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.ahead = self.reader.submit(self._read, consumed, dealing)

    def next_step(self, after: Dealing | None = None) -> Iterator[MicroBatch]:
        """The tokens and targets, (B, T) each, of every micro-step of the next step.

        `after` is how the step after that will be dealt; None = as this one.
        """
        started = time.perf_counter()
        self.windows, self.labels = self.ahead.result()
        self.wait_seconds += time.perf_counter() - started
        self.dealing = self.next_dealing
        self.consumed += self.dealing.samples_per_step
        self._read_ahead(after or self.dealing)
        return self.repeat_step()

    def deal_next(self, dealing: Dealing) -> None:
        """Deal the next step otherwise than was said."""
        if dealing != self.next_dealing:
            self._read_ahead(dealing)

    def repeat_step(self) -> Iterator[MicroBatch]:
        """What `next_step` gave last, again."""
        for windows, labels in self._pair():
            # A GPU gets the ids as narrow as they are stored, and widens them.
            batch = windows.to(self.device, non_blocking=True).to(torch.int64)
            marks = None if labels is None else labels.to(self.device, non_blocking=True)
            yield split_windows(batch, self.padding, marks)

    @property
    def has_ignored(self) -> bool:
        """Whether some targets do not count."""
        return self.padding is not None

    def count_targets(self) -> list[int]:
        """How many targets count in each micro-step of the step that was handed out last.

        None do where this rank has no sample of its own.
        """
        assert self.padding is not None
        return [
            count_targets(windows, self.padding, labels) if weight else 0
            for (windows, labels), weight in zip(self._pair(), self.dealing.weights, strict=True)
        ]

    def count_pairs(self) -> list[int]:
        """How many pairs of answers there are in each micro-step, likewise, of preferences."""
        assert self.labels is not None
        return [
            count_pairs(labels) if weight else 0
            for labels, weight in zip(self.labels, self.dealing.weights, strict=True)
        ]

    def take_wait_seconds(self) -> float:
        """Time spent waiting for data since the last call."""
        seconds, self.wait_seconds = self.wait_seconds, 0.0
        return seconds

    def close(self) -> None:
        """Stop the reading thread."""
        self.reader.shutdown(wait=True, cancel_futures=True)
        self.stream.close()

    def _read_ahead(self, dealing: Dealing) -> None:
        self.next_dealing = dealing
        self.ahead = self.reader.submit(self._read, self.consumed, dealing)

    def _pair(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """The windows of each micro-step, with their labels."""
        labels = self.labels or [None] * len(self.windows)
        return zip(self.windows, labels, strict=True)

    def _read(self, consumed: int, dealing: Dealing) -> Read:
        """The windows of the step after `consumed` samples: A times (B, T + 1), or rows (B, T).

        And the labels of rows, if the run reads chats.
        """
        places = self.places.take(consumed, dealing)
        if self.device.type == "cuda":
            windows = read_pinned(self.stream, places, self.num_tokens)
        else:
            read = self.stream.windows(places, self.num_tokens)
            windows = torch.from_numpy(read.astype(np.int64))
        sizes = [len(samples) for samples in dealing.own_samples(0)]
        labels = None
        if self.marking is not None:
            marks = torch.from_numpy(self.marking.read(places, windows.numpy()))
            marks = marks.pin_memory() if self.device.type == "cuda" else marks
            labels = marks.split_with_sizes(sizes)
        return windows.split_with_sizes(sizes), labels


def read_pinned(stream: Stream, places: npt.NDArray[np.int64], num_tokens: int) -> torch.Tensor:
    """Windows read into memory from which a GPU takes them while the host goes on.

    torch keeps such memory for the next step, but not before the copy is done.
    """
    dtype = {2: torch.uint16, 4: torch.uint32}[stream.dtype.itemsize]
    windows = torch.empty((len(places), num_tokens), dtype=dtype, pin_memory=True)
    stream.fill(windows.numpy(), places)
    return windows
