"""How far a run has come, as its checkpoint says; read without torch."""

from dataclasses import asdict, dataclass
from pathlib import Path

from shards.disk.json_files import Json, load_json
from shards.mixture.mixture import ALONE, Mixture, Stage
from shards.where.choice import Choice
from train.checkpoints.history import History, Stretch
from train.config import Config
from train.settings import config_from_dict

TRAINING_STATE = "training_state.json"
RUN_CONFIG = "run_config.json"
OPTIMIZER = "optimizer.safetensors"
# The key of what a run with model.start began with: a folder, and the sha256 of its weights.
BEGAN_WITH = "began_with"


@dataclass(frozen=True)
class ReadSet:
    """A set that a run has read: its version, and with data.where what was chosen of it."""

    dataset_id: str
    where: str | None = None
    # How many documents and tokens, and a hash of where they are.
    chosen: Json | None = None

    def describe(self) -> Json:
        """The same for JSON; without what there is not."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    step: int  # steps done
    samples_consumed: int
    history: History
    # All sets that were read, in the order in which they came in.
    sets: tuple[ReadSet, ...]
    mixture: Mixture = ALONE

    @property
    def dataset_ids(self) -> list[str]:
        """The ids of all sets."""
        return [found.dataset_id for found in self.sets]

    def describe(self) -> Json:
        """What training_state.json holds of it; of a run on one set, that set has no list."""
        if self.mixture == ALONE:
            sets = self.sets[0].describe()
        else:
            stages = [asdict(stage) for stage in self.mixture.stages]
            sets = {"sets": [found.describe() for found in self.sets], "mixture": stages}
        return {
            "step": self.step,
            "samples_consumed": self.samples_consumed,
            "history": [asdict(stretch) for stretch in self.history],
            **sets,
        }


def read_position(folder: Path) -> Position:
    """How far the run had come at a checkpoint."""
    return parse_position(load_json(folder / TRAINING_STATE))


def read_beginning(folder: Path) -> Json | None:
    """What the run of a checkpoint began with; None for random weights."""
    found: Json | None = load_json(folder / TRAINING_STATE).get(BEGAN_WITH)
    return found


def parse_position(state: Json) -> Position:
    """How far the run had come, by what training_state.json holds."""
    history = tuple(Stretch(**entry) for entry in state["history"])
    step, consumed = state["step"], state["samples_consumed"]
    if "mixture" not in state:
        return Position(step, consumed, history, (parse_set(state),))
    stages = [Stage(entry["first_sample"], tuple(entry["shares"])) for entry in state["mixture"]]
    return Position(
        step, consumed, history, tuple(map(parse_set, state["sets"])), Mixture(tuple(stages))
    )


def parse_set(entry: Json) -> ReadSet:
    """What a checkpoint knows of a set."""
    return ReadSet(entry["dataset_id"], entry.get("where"), entry.get("chosen"))


def check_same_choice(choice: Choice, known: ReadSet, folder: Path) -> None:
    """ValueError if data.where chooses other documents than when a checkpoint was written.

    Documents may have been removed whose columns it names; the order of samples is then another.
    """
    was, now = known.chosen, choice.counts
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
