"""Small training runs that the tests make."""

import json
from pathlib import Path
from typing import Any

from train.config import Config
from train.loop import Outcome, train
from train.settings import load_config

SMALL = {
    "model.hidden_size": 16,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 32,
    "model.max_position_embeddings": 32,
    "data.max_seq_length": 16,
    "training.batch_size_per_device": 2,
    "training.gradient_accumulation_steps": 2,
    "training.precision": "fp32",
    "training.activation_checkpointing": "none",
    "training.learning_rate": 1e-2,
    "training.min_learning_rate": 1e-3,
    "training.warmup_steps": 2,
    "training.num_training_steps": 8,
    "training.logging_steps": 1,
    "training.save_steps": 100,
    "training.eval_steps": 100,
    "training.eval_windows": 8,
}


def make_overrides(shards: Path, folder: Path, **changes: object) -> list[str]:
    """The command line's settings of a small run in `folder`; `changes` such as training__x=1."""
    settings: dict[str, object] = SMALL | {
        "data.shards": shards,
        "infrastructure.output_dir": folder / "checkpoints",
        "infrastructure.logging_dir": folder / "logs",
    }
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in settings.items()]


def make_config(shards: Path, folder: Path, **changes: object) -> Config:
    """The same settings, loaded."""
    return load_config(None, make_overrides(shards, folder, **changes))


def run_small(shards: Path, folder: Path, **changes: object) -> Outcome:
    """A small run in this process."""
    return train(make_config(shards, folder, **changes))


def read_metrics(folder: Path, name: str = "loss") -> dict[int, float]:
    """One metric of a run's log, by step."""
    lines = (folder / "logs" / "metrics.jsonl").read_text().splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return {record["step"]: record[name] for record in records if name in record}
