"""Which checkpoints of a run stay: the newest, every so-manieth for good, and the best.

The best is the one with the lowest validation loss of those that were saved at a step at which it
is taken. best.json in the folder of checkpoints says which: {"step": ..., "validation_loss": ...}.
"""

import json
from pathlib import Path

from model.checkpoints.seal import BEST, list_checkpoints
from shards.disk.durable import write_file
from shards.disk.json_files import load_json
from train.checkpoints.folder import clear_leftovers, prune_checkpoints, remove_checkpoint, step_of
from train.training_config import TrainingConfig


class Retention:
    """The rule of a run, and the best step so far."""

    def __init__(self, folder: Path, training: TrainingConfig) -> None:
        self.folder = folder
        self.training = training
        self.best_step: int | None = None
        self.best_loss = float("inf")

    def is_permanent(self, step: int) -> bool:
        """Whether the checkpoint of a step is never removed."""
        return self.training.is_permanent(step)

    def is_kept(self, step: int) -> bool:
        """Whether a checkpoint stays however old it is."""
        return self.is_permanent(step) or step == self.best_step

    def prune(self, newest: Path) -> None:
        """Remove what does not stay once `newest` is written."""
        prune_checkpoints(self.folder, newest, self.training.save_total_limit, self.is_kept)

    def clear_leftovers(self) -> None:
        """Remove what a save or a removal that was killed left half-done, which takes room."""
        if self.folder.is_dir():
            clear_leftovers(self.folder)

    def tidy(self, start: Path | None) -> None:
        """Remove the checkpoints that a run which was killed has not come to remove.

        `start` is the checkpoint that the run goes on from; later ones stay until it has saved
        again. A best step that this run has not come to yet is one no longer.
        """
        if not self.folder.is_dir():
            return
        checkpoints = list_checkpoints(self.folder)
        if start not in checkpoints:
            return
        place = checkpoints.index(start)
        if self.training.keep_best:
            self._read_best(steps={step_of(path) for path in checkpoints[place:]})
        for old in checkpoints[place + self.training.save_total_limit :]:
            if not self.is_kept(step_of(old)):
                remove_checkpoint(old)

    def note_loss(self, step: int, validation_loss: float) -> bool:
        """Note the validation loss of a step whose checkpoint is whole; whether it is the best."""
        if not self.training.keep_best or not validation_loss < self.best_loss:
            return False
        record = {"step": step, "validation_loss": validation_loss}
        write_file(self.folder / BEST, json.dumps(record) + "\n")
        self.best_step, self.best_loss = step, validation_loss
        return True

    def forget_later(self, step: int) -> None:
        """The run goes back to `step`: nothing behind it is the best any more."""
        if self.best_step is not None and self.best_step > step:
            (self.folder / BEST).unlink(missing_ok=True)
            self.best_step, self.best_loss = None, float("inf")

    def _read_best(self, steps: set[int]) -> None:
        path = self.folder / BEST
        if not path.exists():
            return
        record = load_json(path)
        if record["step"] in steps:
            self.best_step, self.best_loss = record["step"], record["validation_loss"]
        else:
            path.unlink()
