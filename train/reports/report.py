"""Where a run reports: metrics.jsonl, TensorBoard's files, W&B if it is set up, one line on screen.

Curves survive a restart: what was written after the step that a run resumes from is dropped.
"""

import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter

from shards.screen import ScreenLine
from train.config import Config
from train.settings import config_to_dict

METRICS = "metrics.jsonl"
WANDB_ID = "wandb-run-id"
# By name; None = not known, such as the MFU of a device whose peak is unknown.
Metrics = Mapping[str, float | None]
# TensorBoard's name for each metric; those not listed go to metrics.jsonl only.
CHARTS = {
    "loss": "train/loss",
    "validation_loss": "validation/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "loss_scale": "train/loss_scale",
    "skipped_steps": "train/skipped_steps",
    "tokens_per_second": "speed/tokens_per_second",
    "mfu": "speed/mfu",
    "data_wait_seconds": "speed/data_wait_seconds",
    "step_seconds": "speed/step_seconds",
    "memory_bytes": "speed/memory_bytes",
}


class Report:
    """Writes a run's metrics everywhere they go; made on the first rank only."""

    def __init__(self, config: Config, first_step: int) -> None:
        folder = Path(config.infrastructure.logging_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.num_steps = config.training.num_training_steps
        self.first_step = first_step
        self.started = time.monotonic()
        path = folder / METRICS
        if first_step == 0:
            set_aside(folder)
        cut_metrics(path, first_step)
        self.metrics_file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self.board = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)
        self.wandb_run = start_wandb(folder, config_to_dict(config))
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

    def close(self) -> None:
        """Close the files and finish the W&B run."""
        self.line.clear()
        self.metrics_file.close()
        self.board.close()
        if self.wandb_run:
            self.wandb_run.finish()

    def _record(self, step: int, metrics: Metrics) -> None:
        known = {
            name: value
            for name, value in metrics.items()
            if value is not None and math.isfinite(value)
        }
        self.metrics_file.write(json.dumps({"step": step, **known}) + "\n")
        self.metrics_file.flush()
        charted = {CHARTS[name]: value for name, value in known.items() if name in CHARTS}
        for name, value in charted.items():
            self.board.add_scalar(name, value, step)
        if self.wandb_run:
            self.wandb_run.log(charted, step=step)


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


def set_aside(folder: Path) -> None:
    """Move another run's logs to earlier-1, ...; TensorBoard shows them separately."""
    left = [folder / METRICS, folder / WANDB_ID, *folder.glob("events.out.tfevents.*")]
    left = [path for path in left if path.exists()]
    if left:
        number = len(list(folder.glob("earlier-*"))) + 1
        (folder / f"earlier-{number}").mkdir()
        for path in left:
            os.replace(path, folder / f"earlier-{number}" / path.name)


def cut_metrics(path: Path, first_step: int) -> None:
    """Drop the lines of metrics.jsonl after `first_step`, and a half-written last one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= first_step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            continue
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def start_wandb(folder: Path, settings: Mapping[str, Any]) -> Any:
    """A W&B run, if WANDB_API_KEY is set and wandb is installed; the same one after a restart."""
    if not os.environ.get("WANDB_API_KEY") or not importlib.util.find_spec("wandb"):
        return None
    import wandb

    id_file = folder / WANDB_ID
    if not id_file.exists():
        id_file.write_text(wandb.util.generate_id())
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "velocity"),
        id=id_file.read_text().strip(),
        resume="allow",
        dir=str(folder),
        config=dict(settings),
    )
