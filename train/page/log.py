"""A run's log, read: that of a finished run, of one that is at work, or of one that was killed.

A line that is damaged is passed over and counted, as the half-written last one of a killed run is.
"""

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.checkpoints.seal import list_checkpoints
from train.checkpoints.position import TRAINING_STATE, read_run_config
from train.config import Config
from train.page.curves import Curve, Points
from train.reports.log_folder import (
    BAD_STEPS,
    METRICS,
    SAMPLES,
    name_owner,
    read_owner,
    read_record,
)

# Bytes of a line; what is longer is cut, and thereby damaged.
MAX_LINE = 1 << 24
SHOWN_BAD_STEPS = 20
SHOWN_PROMPTS = 20


@dataclass(frozen=True)
class Texts:
    """What a run wrote on the way: by prompt, the first ones only, and by step."""

    by_prompt: dict[str, dict[int, str]]
    # Prompts that are left out.
    num_others: int


@dataclass(frozen=True)
class RunLog:
    """What a run logged, and the settings of its newest checkpoint if there is one."""

    name: str  # as the user named it
    folder: Path
    output_dir: Path | None
    config: Config | None
    curves: dict[str, Curve]
    texts: Texts
    # The last ones.
    bad_steps: list[dict[str, Any]]
    num_damaged: int

    @property
    def last_step(self) -> int:
        """The last step that was logged."""
        return max(int(curve.steps[-1]) for curve in self.curves.values())

    @property
    def earlier(self) -> list[Path]:
        """The logs of other runs that were set aside here."""
        return sorted(path.parent for path in self.folder.glob(f"earlier-*/{METRICS}"))

    @property
    def written(self) -> str:
        """When the log was last written."""
        seconds = (self.folder / METRICS).stat().st_mtime
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def read_log(place: Path) -> RunLog:
    """The log of a run, named by its folder of checkpoints or of logs; ValueError without one."""
    folder, output_dir = find_log(place)
    metrics = Lines(folder / METRICS)
    points = defaultdict[str, Points](Points)
    for record in metrics:
        for name, value in record.items():
            if name != "step" and can_be_drawn(value):
                points[name].add(record["step"], value)
    if not points:
        raise ValueError(f"{folder / METRICS}: no step in it yet; wait for the first one")
    curves = {name: points.pop(name).to_curve() for name in [*points]}
    samples, bad_steps = Lines(folder / SAMPLES), Lines(folder / BAD_STEPS)
    checkpoints = list_checkpoints(output_dir) if output_dir else []
    config = read_run_config(checkpoints[0]) if checkpoints else None
    return RunLog(
        str(place),
        folder,
        output_dir,
        config,
        curves,
        read_texts(samples),
        [*deque(bad_steps, SHOWN_BAD_STEPS)],
        metrics.num_damaged + samples.num_damaged + bad_steps.num_damaged,
    )


class Lines:
    """The records of a file of JSON lines that have a step; none if there is no file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_damaged = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            while line := file.readline(MAX_LINE):
                record = read_record(line)
                step = record.get("step")
                if type(step) is int and 0 <= step < 2**53:
                    yield record
                else:
                    self.num_damaged += 1


def read_texts(samples: Lines) -> Texts:
    """The texts that a run wrote on the way."""
    texts: dict[str, dict[int, str]] = {}
    others = set[str]()
    for record in samples:
        prompt, text = str(record.get("prompt", "")), record.get("text")
        if not isinstance(text, str):
            continue
        if prompt in texts or len(texts) < SHOWN_PROMPTS:
            texts.setdefault(prompt, {})[record["step"]] = text
        else:
            others.add(prompt)
    return Texts(texts, len(others))


def can_be_drawn(value: Any) -> bool:
    """Whether a value of a record can be drawn."""
    if type(value) is not float and type(value) is not int:
        return False
    # Far from where floats end, so that axes can be computed.
    return value == 0 or 1e-290 < abs(value) < 1e300


def find_log(place: Path) -> tuple[Path, Path | None]:
    """A run's folders of logs and of checkpoints; the second may be gone.

    ValueError if no log is found from there.
    """
    if (place / METRICS).is_file():
        owner = read_owner(place)
        # A log that was set aside is a folder further down than it was.
        signed = place.parent if place.absolute().name.startswith("earlier-") else place
        output_dir = signed / owner if owner else place.parent
        return place, output_dir if output_dir.is_dir() else None
    output_dir = place.parent if (place / TRAINING_STATE).is_file() else place
    if not output_dir.is_dir():
        raise ValueError(f"{place}: no such folder; expected a run's checkpoints, or its logs")
    for folder in list_log_folders(output_dir):
        if (folder / METRICS).is_file() and read_owner(folder) in owners(folder, output_dir):
            return folder, output_dir
    raise ValueError(
        f"{place}: found no {METRICS} of this run there or in {place / 'logs'}; name its "
        "infrastructure.logging_dir"
    )


def list_log_folders(output_dir: Path) -> Iterator[Path]:
    """Where the log of a run may be: below its checkpoints, where it said, or beside them."""
    yield output_dir / "logs"
    for checkpoint in list_checkpoints(output_dir)[:1]:
        yield read_run_config(checkpoint).infrastructure.log_folder
    yield output_dir.absolute().parent / "logs"


def owners(folder: Path, output_dir: Path) -> tuple[str | None, ...]:
    """What a log says whose it is if it is this run's; that below it may be too old to say it."""
    own = name_owner(folder, output_dir)
    return (own, None) if own == ".." else (own,)
