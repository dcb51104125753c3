"""What is known about a checkpoint: its shape, its run, its data and its curves, read from files.

A checkpoint from elsewhere has no run, and a set may be on another machine: what is not there is
left out, and never made up.
"""

from dataclasses import dataclass
from pathlib import Path

from model.checkpoints.seal import CONFIG, find_checkpoint, read_json
from shards.disk.json_files import Json
from shards.edit.versions import find_version
from shards.format import Manifest, read_manifest
from train.checkpoints.position import (
    RUN_CONFIG,
    TRAINING_STATE,
    Position,
    read_position,
    read_run_config,
)
from train.config import Config
from train.page.log import RunLog, read_log


@dataclass(frozen=True)
class Facts:
    """A checkpoint, and what its card is made of."""

    folder: Path
    shape: Json  # config.json
    run: Config | None
    position: Position | None
    manifest: Manifest | None
    log: RunLog | None

    @property
    def tokens_seen(self) -> int | None:
        """How many tokens the run has read; None if that is not known."""
        if self.run is None or self.position is None:
            return None
        return self.position.samples_consumed * self.run.data.max_seq_length


def gather(ckpt: Path) -> Facts:
    """The facts about the checkpoint that `ckpt` names."""
    folder = find_checkpoint(ckpt)
    is_ours = all((folder / name).is_file() for name in (RUN_CONFIG, TRAINING_STATE))
    run = read_run_config(folder) if is_ours else None
    position = read_position(folder) if is_ours else None
    manifest = find_manifest(run, position) if run and position else None
    return Facts(folder, read_json(folder / CONFIG), run, position, manifest, find_log(folder))


def find_manifest(run: Config, position: Position) -> Manifest | None:
    """The set that the run read, if it is still where it was, in the version it had then."""
    folder = Path(run.data.shards)
    try:
        newest = read_manifest(folder)
        return find_version(folder, newest, position.dataset_id)
    except (OSError, ValueError):
        return None


def find_log(folder: Path) -> RunLog | None:
    """The log of the checkpoint's run, if there is one."""
    try:
        return read_log(folder)
    except (OSError, ValueError):
        return None
