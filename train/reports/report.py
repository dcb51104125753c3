"""Where a run reports: metrics.jsonl, TensorBoard's files, W&B if it is set up, one line on screen.

Curves survive a restart (train/reports/log_folder.py). No fault of a log ends the run: it is told
once, and what can be written later is.
"""

import errno
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from shards.disk.durable import write_file
from shards.screen.lines import Say, ScreenLine
from train.config import Config
from train.reports.events import begin_events, describe_scalars, name_events, purge_events
from train.reports.growing_file import GrowingFile
from train.reports.log_folder import (
    BAD_STEPS,
    METRICS,
    WANDB_ID,
    cut_bad_steps,
    cut_metrics,
    has_metric,
    open_log,
)
from train.settings import config_to_dict

# By name; None = not known, such as the MFU of a device whose peak is unknown.
Metrics = Mapping[str, float | None]
# TensorBoard's name for each metric; those not listed go to metrics.jsonl only.
CHARTS = {
    "loss": "train/loss",
    "validation_loss": "validation/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "loss_scale": "train/loss_scale",
    "largest_activation": "train/largest_activation",
    "skipped_steps": "train/skipped_steps",
    "bad_steps": "train/bad_steps",
    "tokens_per_second": "speed/tokens_per_second",
    "mfu": "speed/mfu",
    "data_wait_seconds": "speed/data_wait_seconds",
    "step_seconds": "speed/step_seconds",
    "memory_bytes": "speed/memory_bytes",
}
FULL = {errno.ENOSPC, errno.EDQUOT}


class Report:
    """Writes a run's metrics everywhere they go; made on the first rank only."""

    def __init__(self, config: Config, first_step: int, is_continued: bool, say: Say) -> None:
        self.folder = config.infrastructure.log_folder
        self.num_steps = config.training.num_training_steps
        self.first_step = first_step
        self.started = time.monotonic()
        self.say = say
        self.failing: set[str] = set()
        self.metrics_file = GrowingFile(self.folder / METRICS)
        self.bad_steps_file = GrowingFile(self.folder / BAD_STEPS)
        self.has_told = False
        self.event_file = GrowingFile(name_events(self.folder))
        self.event_file.waiting = begin_events(first_step + 1 if first_step else None)
        output_dir = Path(config.infrastructure.output_dir)
        self.is_open = False
        self.open_log: Callable[[], None] = lambda: open_log(
            self.folder, output_dir, is_continued, first_step, say
        )
        self._open_or_wait()
        settings = config_to_dict(config)
        self.wandb_run: Any = None
        self._try("W&B", lambda: self._start_wandb(settings))
        self.line = ScreenLine(sys.stderr)

    def log_step(self, step: int, metrics: Metrics) -> None:
        """Record the metrics of the run after `step` steps, and draw the progress line."""
        self._record(step, metrics)
        seconds = time.monotonic() - self.started
        self.line.draw(describe_progress(step, self.first_step, self.num_steps, seconds, metrics))

    def log_validation(self, step: int, loss: float) -> None:
        """Record the validation loss after `step` steps, and print it."""
        self._record(step, {"validation_loss": loss})
        self.line.say(f"step {step:,}: validation loss {loss:.4f}")

    def log_bad_step(self, record: Mapping[str, Any], text: str) -> None:
        """Record a bad step in bad-steps.jsonl, and say what was done about it."""
        self.bad_steps_file.waiting += json.dumps(record).encode() + b"\n"
        self._write()
        self.line.say(text)

    def forget_bad_steps(self, samples_consumed: int) -> None:
        """Drop the bad steps that a run going on after so many samples meets again."""
        self._try(str(self.folder), lambda: cut_bad_steps(self.folder, samples_consumed))

    def go_back(self, step: int) -> None:
        """Drop what was logged after `step`: the run takes these steps again, with others' data."""
        self._write()
        self.metrics_file.waiting = b""
        self._try(str(self.folder), lambda: cut_metrics(self.folder, step, keeps_copy=False))
        self.event_file.waiting += purge_events(step + 1)
        self.first_step, self.started = step, time.monotonic()

    def tell_once(self, text: str) -> None:
        """Say something about the run, unless something was said so before."""
        if not self.has_told:
            self.has_told = True
            self.line.say(text)

    def has_validation(self, step: int) -> bool:
        """Whether the log has the validation loss after `step` steps."""
        return has_metric(self.folder, step, "validation_loss")

    def close(self) -> None:
        """Write what is still to be written, and finish the W&B run."""
        self.line.clear()
        self._write()
        if self.wandb_run:
            self._try("W&B", self.wandb_run.finish)

    def _start_wandb(self, settings: Mapping[str, Any]) -> None:
        self.wandb_run = start_wandb(self.folder, settings)

    def _open_or_wait(self) -> None:
        """Open the log. A full disk may have room later; any other fault is the user's to mend."""
        try:
            self._open()
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._tell(str(self.folder), error)

    def _record(self, step: int, metrics: Metrics) -> None:
        known = {
            name: value
            for name, value in metrics.items()
            if value is not None and math.isfinite(value)
        }
        charted = {CHARTS[name]: value for name, value in known.items() if name in CHARTS}
        line = json.dumps({"step": step, **known}) + "\n"
        self.metrics_file.waiting += line.encode()
        self.event_file.waiting += describe_scalars(step, charted)
        self._write()
        if self.wandb_run:
            self._try("W&B", lambda: self.wandb_run.log(charted, step=step))

    def _open(self) -> None:
        if not self.is_open:
            self.open_log()
            self.is_open = True

    def _write(self) -> None:
        self._try(str(self.folder), self._write_files)

    def _write_files(self) -> None:
        self._open()
        self.metrics_file.write_waiting()
        self.bad_steps_file.write_waiting()
        self.event_file.write_waiting()

    def _try(self, place: str, action: Callable[[], object]) -> None:
        """Write to a place of the log; a fault is told once, until it is over."""
        try:
            action()
        except Exception as error:
            self._tell(place, error)
        else:
            if place in self.failing:
                self.failing.remove(place)
                self.say(f"{place}: the log is written again")

    def _tell(self, place: str, error: Exception) -> None:
        if place not in self.failing:
            self.failing.add(place)
            reason = " ".join(str(error).split()) or type(error).__name__
            self.say(f"{place}: cannot be logged to ({reason}); the run goes on")


def describe_progress(
    step: int,
    first_step: int,
    num_steps: int,
    seconds: float,
    metrics: Metrics,
) -> str:
    """The progress line of a run that took `seconds` from `first_step` to `step`.

    >>> describe_progress(50, 0, 100, 60.0, {"loss": 5.5, "tokens_per_second": 1234.0})
    'step 50/100  loss 5.500  1,234 tokens/s  0:01:00 left'
    """
    parts = [f"step {step:,}/{num_steps:,}"]
    formats = {
        "loss": "loss {:.3f}",
        "learning_rate": "lr {:.2e}",
        "grad_norm": "norm {:.2f}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "mfu": "MFU {:.1%}",
    }
    for name, template in formats.items():
        value = metrics.get(name)
        if value is not None:
            parts.append(template.format(value))
    left = round(seconds / max(step - first_step, 1) * (num_steps - step))
    parts.append(f"{timedelta(seconds=left)} left")
    return "  ".join(parts)


def start_wandb(folder: Path, settings: Mapping[str, Any]) -> Any:
    """A W&B run, if WANDB_API_KEY is set and wandb is installed; the same one after a restart."""
    if not os.environ.get("WANDB_API_KEY") or not importlib.util.find_spec("wandb"):
        return None
    import wandb

    id_file = folder / WANDB_ID
    if not id_file.exists():
        write_file(id_file, wandb.util.generate_id())
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "velocity"),
        id=id_file.read_text().strip(),
        resume="allow",
        dir=str(folder),
        config=dict(settings),
    )
