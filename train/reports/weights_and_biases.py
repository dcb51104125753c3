"""A run on Weights & Biases: one run there however often it is started here, and no value twice."""

import importlib.util
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.disk.durable import write_file
from train.reports.log_folder import WANDB_ID

# What WANDB_MODE says where nothing is to be sent, so that no key is needed.
OFFLINE = ("offline", "dryrun")


def wants_wandb() -> bool:
    """Whether W&B is installed, and asked for by a key or by its offline mode."""
    is_asked = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in OFFLINE
    return bool(is_asked) and importlib.util.find_spec("wandb") is not None


def start_wandb(folder: Path, settings: Mapping[str, Any]) -> Any:
    """The W&B run of a log, the same one after a restart; None if the environment wants none."""
    if not wants_wandb():
        return None
    import wandb

    id_file = folder / WANDB_ID
    if not id_file.exists():
        write_file(id_file, secrets.token_hex(4))
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "velocity"),
        id=id_file.read_text().strip(),
        resume="allow",
        dir=str(folder),
        config=dict(settings),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def log_to_wandb(run: Any, step: int, values: Mapping[str, float]) -> None:
    """Log the values at a step of ours, which is the x axis.

    W&B numbers its rows by our steps as well, so that those of a restart join the ones before,
    even where they are synced later. It drops what comes for a row that it has passed: such values
    (a validation loss that a kill left out) get the next row.
    """
    row = {} if step < run.step else {"step": step}
    run.log({"step": step, **values}, **row)
