"""How far a run has come, as its checkpoint says; read without torch."""

from dataclasses import dataclass
from pathlib import Path

from shards.disk.json_files import Json, load_json
from train.checkpoints.history import History, Stretch
from train.config import Config
from train.settings import config_from_dict

TRAINING_STATE = "training_state.json"
RUN_CONFIG = "run_config.json"
OPTIMIZER = "optimizer.safetensors"


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    step: int  # steps done
    samples_consumed: int
    history: History
    dataset_id: str


def read_position(folder: Path) -> Position:
    """How far the run had come at a checkpoint."""
    return parse_position(load_json(folder / TRAINING_STATE))


def parse_position(state: Json) -> Position:
    """How far the run had come, by what training_state.json holds."""
    history = tuple(Stretch(**entry) for entry in state["history"])
    return Position(state["step"], state["samples_consumed"], history, state["dataset_id"])


def read_run_config(folder: Path) -> Config:
    """The settings that a checkpoint was made with."""
    path = folder / RUN_CONFIG
    return config_from_dict(load_json(path), str(path))
