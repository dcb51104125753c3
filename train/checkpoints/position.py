"""How far a run has come, as its checkpoint says; read without torch."""

from dataclasses import dataclass
from pathlib import Path

from shards.disk.json_files import Json, load_json
from shards.where.choice import Choice
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
    # With data.where, what it chose: how many documents and tokens, and a hash of where they are.
    chosen: Json | None = None


def read_position(folder: Path) -> Position:
    """How far the run had come at a checkpoint."""
    return parse_position(load_json(folder / TRAINING_STATE))


def parse_position(state: Json) -> Position:
    """How far the run had come, by what training_state.json holds."""
    history = tuple(Stretch(**entry) for entry in state["history"])
    step, samples = state["step"], state["samples_consumed"]
    return Position(step, samples, history, state["dataset_id"], state.get("chosen"))


def check_same_choice(choice: Choice, position: Position, folder: Path) -> None:
    """ValueError if data.where chooses other documents than when a checkpoint was written.

    Documents may have been removed whose columns it names; the order of samples is then another.
    """
    was, now = position.chosen, choice.counts
    if was != now:
        texts = [f"{c['documents']:,} documents of {c['tokens']:,} tokens" for c in (was, now) if c]
        raise ValueError(
            f"{folder}: data.where chose {texts[0]} when it was written, and now {texts[-1]}, as "
            "documents were removed from the set since; the order of samples is another one, so "
            "begin a new run in another infrastructure.output_dir"
        )


def read_run_config(folder: Path) -> Config:
    """The settings that a checkpoint was made with."""
    path = folder / RUN_CONFIG
    return config_from_dict(load_json(path), str(path))
