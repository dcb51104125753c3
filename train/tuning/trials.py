"""One rate's run: the settings with which it is a short run of the same kind, and how it ended."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from train.config import Config
from train.reports.log_folder import METRICS, read_record

Parameter = Literal["learning_rate", "muon_learning_rate"]


@dataclass(frozen=True)
class Trial:
    """What a rate came to; no loss means that the run diverged."""

    rate: float
    loss: float | None
    skipped_steps: int
    seconds: float


def shorten(config: Config, steps: int) -> dict[str, object]:
    """What makes a run of `steps` steps of these settings: its whole schedule, and nothing beside.

    What counts steps of the schedule keeps its share of the run.

    >>> short = shorten(Config(), 1000)
    >>> short["training.warmup_steps"], short["training.num_training_steps"]
    (20, 1000)
    """
    training = config.training
    scaled = {
        name: max(round(length * steps / training.num_training_steps), 1)
        for name in ("warmup_steps", "cycle_steps", "batch_warmup_steps")
        if (length := getattr(training, name))
    }
    own: dict[str, object] = {
        "num_training_steps": steps,
        "epochs": "null",
        **scaled,
        "eval_steps": steps,
        # Only at the end, from where nothing goes on.
        "save_steps": steps,
        "save_total_limit": 1,
        "keep_every_steps": "null",
        "keep_best": "false",
        "sample_steps": "null",
        "eval_sets": "",
        "eval_tasks": "",
        # That a run diverges is a result: it goes on to its end.
        "on_bad_step": "warn",
        "max_skipped_steps": steps + 1,
    }
    return {f"training.{name}": value for name, value in own.items()}


def set_rate(config: Config, parameter: Parameter, rate: float) -> dict[str, float]:
    """The settings that give a run this rate; what goes with learning_rate keeps its share of it.

    That is the lowest rate of its cycles, if it has some, and Muon's, if that is another.
    """
    own: dict[str, float] = {f"training.{parameter}": rate}
    training = config.training
    if parameter == "learning_rate" and training.learning_rate:
        change = rate / training.learning_rate
        if training.schedule == "cosine_restarts":
            own["training.min_learning_rate"] = min(change * training.min_learning_rate, rate)
        if training.muon_learning_rate is not None:
            own["training.muon_learning_rate"] = change * training.muon_learning_rate
    return own


def read_end(log_folder: Path, steps: int) -> tuple[float | None, int]:
    """The validation loss of the last step, and the steps skipped until then, as they were logged.

    A loss that is not finite is not in a log: None.
    """
    loss, skipped = None, 0
    for line in (log_folder / METRICS).read_bytes().splitlines():
        record = read_record(line)
        if record.get("step") == steps:
            loss = record.get("validation_loss", loss)
            skipped = record.get("skipped_steps", skipped)
    return loss, int(skipped)
