"""How far a run has come, as its checkpoint says; read without torch."""

from dataclasses import asdict, dataclass
from pathlib import Path

from shards.disk.json_files import Json, load_json
from shards.mixture.mixture import ALONE, Mixture, Stage
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
    # The dataset_ids of all sets that were read, in the order in which they came in.
    dataset_ids: tuple[str, ...]
    mixture: Mixture = ALONE

    def describe(self) -> Json:
        """What training_state.json holds of it; of a run on one set only that set's id."""
        if self.mixture == ALONE:
            sets: Json = {"dataset_id": self.dataset_ids[0]}
        else:
            stages = [asdict(stage) for stage in self.mixture.stages]
            ids = [{"dataset_id": dataset_id} for dataset_id in self.dataset_ids]
            sets = {"sets": ids, "mixture": stages}
        return {
            "step": self.step,
            "samples_consumed": self.samples_consumed,
            "history": [asdict(stretch) for stretch in self.history],
            **sets,
        }


def read_position(folder: Path) -> Position:
    """How far the run had come at a checkpoint."""
    return parse_position(load_json(folder / TRAINING_STATE))


def parse_position(state: Json) -> Position:
    """How far the run had come, by what training_state.json holds."""
    history = tuple(Stretch(**entry) for entry in state["history"])
    step, consumed = state["step"], state["samples_consumed"]
    if "mixture" not in state:
        return Position(step, consumed, history, (state["dataset_id"],))
    stages = [Stage(entry["first_sample"], tuple(entry["shares"])) for entry in state["mixture"]]
    ids = tuple(entry["dataset_id"] for entry in state["sets"])
    return Position(step, consumed, history, ids, Mixture(tuple(stages)))


def read_run_config(folder: Path) -> Config:
    """The settings that a checkpoint was made with."""
    path = folder / RUN_CONFIG
    return config_from_dict(load_json(path), str(path))
