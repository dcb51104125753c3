"""Writes checkpoints beside training: a thread of the first rank, from snapshots.

    begin    take a snapshot, and let the thread write it; training goes on
    finish   the end of a run: wait for the thread, and save the last step if it is not saved yet

A save that comes due while the one before is still being written waits for it for a while, and is
left out then: waiting on would stop all GPUs at each save for as long as the disk is too slow,
while one left out costs at most as much again after a crash.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from model.checkpoints.folder import write_weights
from model.checkpoints.seal import WEIGHT_FILE, Sealed
from model.checkpoints.tensor_file import write_tensors
from shards.screen.lines import Say
from train.checkpoints.folder import SaveError, save_checkpoint
from train.checkpoints.retention import Retention
from train.checkpoints.snapshot import Snapshot
from train.ranks.distributed import Rank

# How long a save waits for the one before it.
PATIENCE_SECONDS = 10.0
# While the first rank writes, the others hear from it this often.
BEAT_SECONDS = 5.0

# Called by all ranks; the first one gets the snapshot.
Take = Callable[[], Snapshot | None]


class Saver:
    """The saves of a run; every rank has one, and calls it at the same steps."""

    def __init__(
        self, rank: Rank, retention: Retention, step: int, start: Path | None, say: Say
    ) -> None:
        self.rank = rank
        self.folder = retention.folder
        self.retention = retention
        self.say = say
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.job: Future[None] | None = None
        # The newest step that is saved, and its checkpoint in the run's folder, as the first rank
        # knows; a run that begins elsewhere, or from scratch, has none yet.
        self.saved_step, self.saved = step, start
        # What the last save failed of, if it did.
        self.error: SaveError | None = None
        # The longest that a save has taken, its copies included; None = not known yet.
        self.seconds: float | None = None
        self.has_told = False

    def begin(self, step: int, take: Take) -> None:
        """Take a snapshot and begin to write it, unless the one before takes too long."""
        self.rank.place.enter(f"saving step {step:,}", is_long=True)
        if self.retention.is_permanent(step):
            self.wait()
        elif self.rank.max(not self._is_idle(PATIENCE_SECONDS)):
            self._tell_left_out(step)
            return
        self._start(take, self._write)

    def note_loss(self, step: int, loss: float) -> None:
        """Tell the validation loss of a step, which may make its checkpoint the best."""
        if self.rank.is_first:
            self._is_idle(0)  # If the job before has failed, its error is raised here.
            self.job = self.thread.submit(self._note_loss, step, loss)

    def wait(self) -> None:
        """Wait until everything is written; the ranks meet meanwhile, so that none is missed."""
        while self.rank.max(not self._is_idle(BEAT_SECONDS)):
            self.rank.place.move()

    def finish(self, step: int, take: Take, deadline: float | None = None) -> Path | None:
        """Have the state after `step` saved; the newest checkpoint, on the first rank.

        SaveError there, FirstRankError elsewhere, if it cannot be. With a `deadline` of
        time.monotonic(), it is not tried if a save is known to take longer.
        """
        self.rank.place.enter(f"saving step {step:,}", is_long=True)
        self.wait()
        if self.rank.max(self._is_missing(step, deadline)):
            self._start(take, self._write_last)
            self.wait()
            self.rank.do_first(self._raise_error)
        return self.saved

    def go_back(self, checkpoint: Path, step: int) -> None:
        """The run is where `checkpoint` left it; those of later steps are removed."""
        self.saved_step, self.saved = step, checkpoint
        self.rank.do_first(self._go_back)

    def close(self) -> None:
        """Let the thread end what it has begun."""
        self.thread.shutdown()

    def _is_idle(self, seconds: float) -> bool:
        """Whether nothing is being written any more, after waiting for it for a while."""
        if self.job is None:
            return True
        is_done = not wait([self.job], seconds).not_done
        if is_done:
            self.job.result()
        return is_done

    def _is_missing(self, step: int, deadline: float | None) -> bool:
        if not self.rank.is_first or step == self.saved_step:
            return False
        if deadline is None or self.seconds is None:
            return True
        seconds_left = deadline - time.monotonic()
        if self.seconds <= seconds_left:
            return True
        self.say(
            f"step {step:,} is not saved: that takes about {self.seconds:.0f} seconds, and "
            f"training.stop_seconds leaves {max(seconds_left, 0):.0f}; the newest checkpoint is "
            f"{self.saved}"
        )
        return False

    def _start(self, take: Take, write: Callable[[Snapshot, float], None]) -> None:
        started = time.monotonic()
        snapshot = take()
        if snapshot:
            self.job = self.thread.submit(write, snapshot, started)

    def _write(self, snapshot: Snapshot, started: float) -> None:
        self._write_last(snapshot, started)
        if self.error:
            self.say(f"{self.error}; free some disk, it is tried again")

    def _write_last(self, snapshot: Snapshot, started: float) -> None:
        def fill(folder: Path) -> Mapping[str, Sealed]:
            return write_files(folder, snapshot)

        self.error = None
        try:
            self.saved = save_checkpoint(self.folder, snapshot.step, fill)
        except SaveError as error:
            self.error = error
            return
        self.saved_step = snapshot.step
        self.seconds = max(self.seconds or 0, time.monotonic() - started)
        self._prune()

    def _note_loss(self, step: int, loss: float) -> None:
        if self.saved is None or step != self.saved_step:
            return
        try:
            is_best = self.retention.note_loss(step, loss)
        except OSError as error:
            self.say(f"{self.folder}: which checkpoint is the best cannot be noted ({error})")
            return
        if is_best:
            self._prune()

    def _prune(self) -> None:
        assert self.saved
        try:
            self.retention.prune(self.saved)
        except OSError as error:
            self.say(f"{self.folder}: old checkpoints cannot be removed ({error})")

    def _go_back(self) -> None:
        self.retention.forget_later(self.saved_step)
        self._prune()

    def _raise_error(self) -> None:
        if self.error:
            raise self.error

    def _tell_left_out(self, step: int) -> None:
        if self.rank.is_first and not self.has_told:
            self.has_told = True
            self.say(
                f"checkpoint-{step} is left out: the one before it is still being written; where "
                "this goes on, set more training.save_steps"
            )


def write_files(folder: Path, snapshot: Snapshot) -> dict[str, Sealed]:
    """Write a checkpoint's files into a folder; what was hashed meanwhile."""
    for name, content in snapshot.contents.items():
        (folder / name).write_bytes(content)
    return {
        name: (write_weights if WEIGHT_FILE.fullmatch(name) else write_tensors)(
            folder / name, tensors
        )
        for name, tensors in snapshot.tensors.items()
    }
