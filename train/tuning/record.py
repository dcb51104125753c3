"""tuning.json: what was asked, and each trial that is done; written anew after every one."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.disk.durable import write_file
from shards.disk.json_files import Json, load_json
from shards.disk.shapes import NUMBER, OrNull, find_misshape
from train.config import Config
from train.settings import config_to_dict
from train.tuning.trials import Parameter, Trial

RECORD = "tuning.json"
TRIAL_SHAPE = {"rate": NUMBER, "loss": OrNull(NUMBER), "skipped_steps": int, "seconds": NUMBER}
SHAPE = {
    "asked": {"parameter": str, "steps": int, "ranks": int, "dataset_id": str, "settings": dict},
    "trials": [TRIAL_SHAPE],
}
# Settings that say where files are, and not what a trial comes to.
PLACES = (
    ("data", "shards"),
    ("infrastructure", "output_dir"),
    ("infrastructure", "logging_dir"),
)


def describe_asked(
    config: Config, parameter: Parameter, steps: int, ranks: int, dataset_id: str
) -> Json:
    """All that a trial's loss depends on, besides its rate."""
    # As they are read again: JSON has lists for tuples.
    settings = json.loads(json.dumps(config_to_dict(config)))
    for section, key in PLACES:
        del settings[section][key]
    return {
        "parameter": parameter,
        "steps": steps,
        "ranks": ranks,
        "dataset_id": dataset_id,
        "settings": settings,
    }


@dataclass
class Record:
    """The trials of one tuning, by rate."""

    path: Path
    asked: Json
    trials: dict[float, Trial]

    def add(self, trial: Trial) -> None:
        """Keep a trial, on the disk too."""
        self.trials[trial.rate] = trial
        listed = [asdict(self.trials[rate]) for rate in sorted(self.trials)]
        text = json.dumps({"asked": self.asked, "trials": listed}, indent=1, allow_nan=False)
        write_file(self.path, text + "\n")


def open_record(folder: Path, asked: Json) -> Record:
    """The record of a folder, or a new one; ValueError if it is of something else."""
    path = folder / RECORD
    if not path.exists():
        return Record(path, asked, {})
    raw = load_json(path)
    fault = find_misshape(raw, SHAPE)
    if fault:
        raise ValueError(f"{path}: {fault}; remove it, or choose another --out")
    unlike = [*find_unlike(raw["asked"], asked)]
    if unlike:
        raise ValueError(
            f"{path}: its trials were made with another {', '.join(unlike[:3])}; choose another "
            "--out, or ask as before"
        )
    trials = (Trial(**{name: entry[name] for name in TRIAL_SHAPE}) for entry in raw["trials"])
    return Record(path, asked, {trial.rate: trial for trial in trials})


def find_unlike(before: Json, now: Json, place: str = "") -> list[str]:
    """The names of what differs, settings as section.key.

    >>> find_unlike({"steps": 5, "settings": {"a": {"b": 1}}}, {"steps": 5, "settings": {"a": {}}})
    ['a.b']
    """
    names: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        name = f"{place}{key}"
        left, right = before.get(key), now.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            names += find_unlike(left, right, "" if key == "settings" else f"{name}.")
        elif left != right:
            names.append(name)
    return names
