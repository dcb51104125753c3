"""Where a run reports: metrics.jsonl, TensorBoard's files, W&B if it is set up, one line on screen.

Curves survive a restart (train/reports/log_folder.py). No fault of a log ends the run: it is told
once, and what can be written later is.
"""

import errno
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.screen.lines import Say
from train.config import Config
from train.reports.evaluations import describe_metrics, is_drawn
from train.reports.events import (
    begin_events,
    describe_scalars,
    describe_texts,
    name_events,
    purge_events,
)
from train.reports.growing_file import GrowingFile
from train.reports.log_folder import (
    BAD_STEPS,
    METRICS,
    SAMPLES,
    Entry,
    cut_bad_steps,
    cut_log,
    has_metric,
    has_samples,
    open_log,
    read_step,
)
from train.reports.progress import Progress
from train.reports.texts import Sample, describe_samples, make_lines, name_texts
from train.reports.weights_and_biases import log_to_wandb, start_wandb
from train.settings import config_to_dict

# By name; None = not known, such as the MFU of a device whose peak is unknown.
Metrics = Mapping[str, float | None]
# TensorBoard's name for each metric; those not listed go to metrics.jsonl only. TensorBoard shows
# groups in the order of the alphabet, and opens the first two: so these, with the loss on top.
CHARTS = {
    "loss": "loss/train",
    "validation_loss": "loss/validation",
    "z_loss": "loss/z_loss",
    # Of pairs of answers, each with a name of its own: rewards/chosen, and so on.
    "rewards": "rewards",
    "validation_rewards": "rewards/validation",
    "logps": "rewards/logps",
    "validation_logps": "rewards/logps/validation",
    "learning_rate": "optimizer/learning_rate",
    "grad_norm": "optimizer/grad_norm",
    "loss_scale": "optimizer/loss_scale",
    "largest_activation": "optimizer/largest_activation",
    "skipped_steps": "optimizer/skipped_steps",
    "bad_steps": "optimizer/bad_steps",
    "tokens_per_second": "speed/tokens_per_second",
    "mfu": "speed/mfu",
    "mfu_causal": "speed/mfu_causal",
    "data_wait_seconds": "speed/data_wait_seconds",
    "step_seconds": "speed/step_seconds",
    "memory_bytes": "speed/memory_bytes",
}
FULL = {errno.ENOSPC, errno.EDQUOT}


class Report:
    """Writes a run's metrics everywhere they go; made on the first rank only."""

    def __init__(self, config: Config, first_step: int, is_continued: bool, say: Say) -> None:
        self.folder = config.infrastructure.log_folder
        self.say = say
        self.failing: set[str] = set()
        self.metrics_file = GrowingFile(self.folder / METRICS)
        self.samples_file = GrowingFile(self.folder / SAMPLES)
        self.bad_steps_file = GrowingFile(self.folder / BAD_STEPS)
        self.has_told = False
        self.event_file = GrowingFile(name_events(self.folder))
        self.event_file.waiting = begin_events(first_step + 1 if first_step else None)
        output_dir = Path(config.infrastructure.output_dir)
        self.is_open = False
        # What the run logged before it was killed, and will log again.
        self.repeated: set[Entry] = set()
        self.open_log: Callable[[], set[Entry]] = lambda: open_log(
            self.folder, output_dir, is_continued, first_step, say
        )
        self._open_or_wait()
        settings = config_to_dict(config)
        self.wandb_run: Any = None
        self._try("W&B", lambda: self._start_wandb(settings))
        training = config.training
        self.progress = Progress(first_step, training.num_training_steps, training.progress_steps)

    def log_step(self, step: int, metrics: Metrics) -> None:
        """Record the metrics of the run after `step` steps, and draw the progress line."""
        self._record(step, metrics)
        self.progress.draw(step, metrics)

    def log_validation(
        self, step: int, loss: float, by_set: Mapping[str, float], more: Metrics
    ) -> None:
        """Record the validation loss after `step` steps, and print it: of several sets, each's.

        `more` is recorded beside it.
        """
        own = {f"validation_loss/{name}": value for name, value in by_set.items()}
        self._record(step, {"validation_loss": loss} | own | dict(more))
        named = ", ".join(f"{name} {value:.4f}" for name, value in by_set.items())
        told = f" ({named})" if named else ""
        self.progress.say(f"step {step:,}: validation loss {loss:.4f}{told}")

    def log_bad_step(self, record: Mapping[str, Any], text: str) -> None:
        """Record a bad step in bad-steps.jsonl, and say what was done about it."""
        self.bad_steps_file.waiting += json.dumps(record).encode() + b"\n"
        self._write()
        self.progress.say(text)

    def forget_bad_steps(self, samples_consumed: int) -> None:
        """Drop the bad steps that a run going on after so many samples meets again."""
        self._try(str(self.folder), lambda: cut_bad_steps(self.folder, samples_consumed))

    def go_back(self, step: int) -> None:
        """Drop what was logged after `step`: the run takes these steps again, with others' data."""
        self._write()
        for file in (self.metrics_file, self.samples_file):
            waiting = file.waiting.splitlines(keepends=True)
            file.waiting = b"".join(w for w in waiting if (read_step(w) or 0) <= step)
        self._try(str(self.folder), lambda: self._cut_log(step))
        self.event_file.waiting += purge_events(step + 1)
        self.progress.go_back(step)

    def tell_once(self, text: str) -> None:
        """Say something about the run, unless something was said so before."""
        if not self.has_told:
            self.has_told = True
            self.progress.say(text)

    def log_evaluation(self, step: int, key: str, metrics: Metrics | None) -> None:
        """Record what was found of a set or task, `key`, after `step` steps, and print it.

        None = its losses are no numbers.
        """
        if metrics is not None:
            self._record(step, {f"{key}/{name}": value for name, value in metrics.items()})
        self.progress.say(f"step {step:,}: {key}: {describe_metrics(metrics)}")

    def has(self, step: int, metric: str) -> bool:
        """Whether the log has a metric after `step` steps."""
        return has_metric(self.folder, step, metric)

    def log_samples(self, step: int, count: int, write: Callable[[], Sequence[Sample]]) -> None:
        """Record the `count` texts that `write` makes after `step` steps, if the log has not."""

        def write_and_record() -> None:
            if has_samples(self.folder, step, count):
                return
            samples = write()
            self.samples_file.waiting += make_lines(step, samples)
            self.event_file.waiting += describe_texts(step, name_texts(samples))
            self.progress.say(f"step {step:,}: {describe_samples(samples)}")

        self._try("texts", write_and_record)
        self._write()

    def close(self) -> None:
        """Write what is still to be written, and finish the W&B run."""
        self.progress.close()
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
        charts = {name: find_chart(name) for name in known}
        charted = {chart: known[name] for name, chart in charts.items() if chart}
        line = json.dumps({"step": step, **known}) + "\n"
        self.metrics_file.waiting += line.encode()
        self.event_file.waiting += describe_scalars(step, charted)
        self._write()
        fresh = {
            chart: known[name]
            for name, chart in charts.items()
            if chart and (step, name) not in self.repeated
        }
        if self.wandb_run and fresh:
            self._try("W&B", lambda: log_to_wandb(self.wandb_run, step, fresh))

    def _open(self) -> None:
        if not self.is_open:
            self.repeated = self.open_log()
            self.is_open = True

    def _cut_log(self, step: int) -> None:
        self.repeated |= cut_log(self.folder, step, keeps_copy=False)

    def _write(self) -> None:
        self._try(str(self.folder), self._write_files)

    def _write_files(self) -> None:
        self._open()
        self.metrics_file.write_waiting()
        self.samples_file.write_waiting()
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


def find_chart(metric: str) -> str | None:
    """TensorBoard's name for a metric, or for that of one set; None if it goes to no chart.

    >>> find_chart("validation_loss"), find_chart("validation_loss/web"), find_chart("epoch")
    ('loss/validation', 'loss/validation/web', None)
    """
    if is_drawn(metric):
        return metric
    of_all, slash, name = metric.partition("/")
    return f"{CHARTS[of_all]}{slash}{name}" if of_all in CHARTS else None
