"""The ranks of a run: which one this process is, its device, and what they compute together."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from train.config import DistributedConfig
from train.ranks.alarm import Alarm
from train.ranks.ending import Ending, FirstRankError
from train.ranks.meeting import meet
from train.ranks.place import Place
from train.ranks.watch import Limits, Watch

Result = TypeVar("Result")


@dataclass(frozen=True)
class Rank:
    """One process of a run; `rank` counts over all machines, `local_rank` on this one."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    # What it is doing, as others may ask.
    place: Place = field(default_factory=Place)
    # How it ends if it fails; None = by an exception, as in a program that trains.
    ending: Ending | None = None

    def telling(self) -> AbstractContextManager[None]:
        """Within this, an error is told at once, before anything is cleaned up."""
        return self.ending.telling() if self.ending else nullcontext()

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files and reports to the user."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value, summed over the ranks."""
        if self.world_size == 1:
            return list(values)
        totals = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(totals)
        return [float(total) for total in totals.tolist()]

    def gather(self, values: torch.Tensor) -> list[list[float]]:
        """Each rank's values (N,), fp32 and on its device, by rank: the same lists on all."""
        if self.world_size == 1:
            return [values.tolist()]
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(parts, values)
        rows: list[list[float]] = torch.stack(parts).tolist()
        return rows

    def max(self, value: int) -> int:
        """The largest value over all ranks."""
        if self.world_size == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def do_first(self, action: Callable[[], Result]) -> Result | None:
        """What `action` returns on the first rank, which alone calls it; the others wait.

        If it fails, its error is raised there, and FirstRankError on all others.
        """
        result, error = None, None
        if self.is_first:
            try:
                result = action()
            except Exception as caught:
                error = caught
        has_failed = self.max(error is not None)
        if error:
            raise error
        if has_failed:
            raise FirstRankError
        return result


@contextmanager
def join_ranks(
    config: DistributedConfig, ending: Ending | None = None, log_folder: Path | None = None
) -> Iterator[Rank]:
    """This process as one rank of the run that torchrun started, or as a run of its own.

    Where there are several, one that fails ends all others, whatever they wait for.
    """
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = choose_device(config, local_rank, world_size)
    place = Place()
    if world_size == 1:
        yield Rank(rank, world_size, local_rank, device, place, ending)
        return
    store = meet(rank, world_size)
    ending = ending or Ending()
    ending.alarm = Alarm(clone(store), world_size)
    limits = Limits(config.start_timeout_seconds, config.step_timeout_seconds)
    watch = Watch(ending, clone(store), rank, world_size, place, limits, log_folder)
    ending.find_silent = watch.find_silent
    watch.start()
    start_communication(config, rank, world_size, device, store)
    yield Rank(rank, world_size, local_rank, device, place, ending)
    # Not after an error: all this would wait for ranks that are still at work.
    place.enter("the end", is_long=None)
    watch.stop()
    ending.alarm = None
    dist.destroy_process_group()


def clone(store: PrefixStore) -> Store:
    """The same store by a connection of its own, where no call waits for another thread's."""
    cloned: Store = store.clone()  # type: ignore[attr-defined]
    return cloned


def start_communication(
    config: DistributedConfig, rank: int, world_size: int, device: torch.device, store: Store
) -> None:
    """Make torch's process group. It never gives up before the watch does, which says more.

    torch 2.13 has its flight recorder on (TORCH_FR_BUFFER_SIZE=2000); the watch reads it.
    """
    # torch's own thread would abort this process (SIGABRT) for an error of a connection, before
    # anybody has said which rank is gone.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    backend = config.backend
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(
            seconds=2 * max(config.start_timeout_seconds, config.step_timeout_seconds)
        ),
        device_id=device if backend == "nccl" else None,
    )


def choose_device(config: DistributedConfig, local_rank: int, world_size: int) -> torch.device:
    """The device of this rank: its own GPU; alone, Apple's; else the CPU.

    Raises ValueError if `distributed.device` asks for what is not there.
    """
    has_mps = torch.backends.mps.is_available() and world_size == 1
    there = {"cuda": torch.cuda.is_available(), "mps": has_mps, "cpu": True}
    kind = config.device
    if kind == "auto":
        kind = "cuda" if there["cuda"] else "mps" if has_mps else "cpu"
    if config.backend == "nccl" and kind != "cuda":
        found = "torch finds no GPU here" if not there["cuda"] else f"distributed.device is {kind}"
        raise ValueError(
            f"distributed.backend is nccl, but {found}; "
            "set distributed.backend=gloo or leave it at auto"
        )
    if not there[kind]:
        what = "GPU" if kind == "cuda" else "Apple GPU (MPS) for a run of one rank"
        raise ValueError(
            f"distributed.device is {kind}, but torch finds no {what} here; "
            "set distributed.device=cpu or leave it at auto"
        )
    if kind != "cuda":
        return torch.device(kind)
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"rank {local_rank} on this machine has no GPU: there are {torch.cuda.device_count()}; "
            f"run torchrun with --nproc_per_node {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
