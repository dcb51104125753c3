"""A checkpoint's tensors to all ranks: the first one reads and checks each file once.

The others receive what it has read, tensor by tensor, so a file system serves a run of any size
once. Whether a file is damaged shows at its end; then everything read from it is to be replaced,
from the checkpoint before, which has the same tensors.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from model.adapters.files import name_saved
from model.checkpoints.seal import CheckpointError, list_weight_files, read_seal
from model.checkpoints.tensor_file import TensorReader, check_entries
from model.transformer import Transformer
from shards.mixture.sets import Sets
from shards.screen.lines import Say
from train.checkpoints.position import OPTIMIZER
from train.checkpoints.resume import TRYING, Start, agree_on_start
from train.checkpoints.same_run import check_same_run
from train.checkpoints.state import (
    GENERATOR,
    Parts,
    collect_moments,
    restore_parts,
)
from train.config import Config
from train.ranks.distributed import Rank
from train.ranks.exchange import share_json, spread_tensor
from train.step.optimizer import make_moments

# Which files, of the names in a seal.
Choose = Callable[[Iterable[str]], list[str]]


def restore(
    config: Config,
    rank: Rank,
    sets: Sets,
    start: Start,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    parts: Parts,
    say: Say,
) -> Start:
    """Give a run the state of a checkpoint, or of one before it if it is damaged; which it was.

    All ranks call this together. On the first one, ValueError if there is none left, and
    CheckpointError if it was named.
    """
    damaged: set[Path] = set()
    while fault := load_tensors(start.path, rank, model, optimizer):
        if not start.is_own:
            rank.do_first(partial(refuse_damaged, fault))
        say(f"{fault}; {TRYING}")
        damaged.add(start.path)
        before = agree_on_start(config.infrastructure, rank, say, damaged)
        assert before, "another process has removed the damaged checkpoint"
        start = before
        check_same_run(config, sets, start, say)
    restore_parts(start.state, parts)
    return start


def refuse_damaged(fault: str) -> None:
    """CheckpointError for a checkpoint that was named and cannot be read."""
    raise CheckpointError(fault)


def load_tensors(
    folder: Path, rank: Rank, model: Transformer, optimizer: torch.optim.Optimizer
) -> str | None:
    """Load weights, moments and the generator's state; what is wrong with them, if anything is."""
    fault = load_files(folder, list_weight_files, rank, name_saved(model))
    if fault is None:
        make_moments(optimizer)
        moments = collect_moments(model, optimizer)
        generator = moments[GENERATOR] = moments[GENERATOR].to(rank.device)
        fault = load_files(folder, lambda _: [OPTIMIZER], rank, moments)
        if fault is None:
            torch.set_rng_state(generator.cpu())
    return fault


def load_files(
    folder: Path, choose: Choose, rank: Rank, targets: Mapping[str, Tensor]
) -> str | None:
    """Load one file or several into tensors; what is wrong, on all ranks, None if nothing is.

    `choose` says which ones, of the names in the folder's seal.
    """
    reading = Reading(folder, choose, targets) if rank.is_first else None
    for name in share_json(rank, reading and reading.names):
        spread_tensor(rank, targets[name], reading.read_into if reading else refuse)
        rank.place.move()
    if reading:
        reading.end()
    fault: str | None = share_json(rank, reading and reading.fault)
    return fault


class Reading:
    """Files read by the first rank: after a fault it reads on for form's sake, as others wait."""

    def __init__(self, folder: Path, choose: Choose, targets: Mapping[str, Tensor]) -> None:
        self.path = folder
        self.fault: str | None = None
        self.names: list[str] = []
        self.readers: list[TensorReader] = []
        # Which file the next tensor is in, for each.
        self.places: Iterator[TensorReader] = iter(())
        self._try(lambda: self._open(choose, targets))

    def read_into(self, target: Tensor) -> None:
        """Read the next tensor, unless there was a fault."""
        if self.fault is None:
            reader = next(self.places)
            self.path = reader.path
            self._try(lambda: reader.read_into(target))

    def end(self) -> None:
        """Check what was read, and close the files."""
        for reader in self.readers:
            if self.fault is None:
                self._try(reader.check)
            reader.file.close()

    def _open(self, choose: Choose, targets: Mapping[str, Tensor]) -> None:
        folder, sealed = self.path, read_seal(self.path)
        for name in choose(sealed):
            self.path = folder / name
            self.readers.append(TensorReader(self.path, sealed[name]))
        entries = [entry for reader in self.readers for entry in reader.entries]
        check_entries(self.path, entries, targets)
        self.names = [entry.name for entry in entries]
        self.places = iter([reader for reader in self.readers for _ in reader.entries])

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except CheckpointError as error:
            self.fault = str(error)
        except OSError as error:
            self.fault = f"{self.path}: cannot be read ({error})"


def refuse(_target: Tensor) -> None:
    """Only the first rank reads."""
    raise AssertionError
