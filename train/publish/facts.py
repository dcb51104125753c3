"""What is known about a checkpoint: its shape, its run, its data and its curves, read from files.

A checkpoint from elsewhere has no run, and a set may be on another machine: what is not there is
left out, and never made up.
"""

import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from model.checkpoints.chat_template import TEMPLATE
from model.checkpoints.differences import explaining
from model.checkpoints.hugging_face import QUANTIZATION, read_config_json
from model.checkpoints.seal import (
    CONFIG,
    CheckpointError,
    find_checkpoint,
    is_seed_checkpoint,
    read_json,
)
from model.config import ModelConfig
from shards.disk.json_files import Json
from shards.edit.versions import find_version
from shards.format import Manifest, read_manifest
from train.checkpoints.position import (
    RUN_CONFIG,
    TRAINING_STATE,
    Position,
    read_beginning,
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
    model: ModelConfig
    run: Config | None
    position: Position | None
    # Of each of the run's sets, in the order of its dataset_ids; None for one that is not there.
    manifests: tuple[Manifest | None, ...]
    # Until the checkpoint's step.
    log: RunLog | None
    # The folder whose weights its run began with, and their sha256; None if there was none.
    began_with: Json | None = None

    @property
    def writes_chats(self) -> bool:
        """Whether it has a template of chats."""
        return (self.folder / TEMPLATE).is_file()

    @property
    def tokens_seen(self) -> int | None:
        """How many tokens the run has read; None if that is not known."""
        if self.run is None or self.position is None:
            return None
        return self.position.samples_consumed * self.run.data.max_seq_length


def gather(ckpt: Path) -> Facts:
    """The facts about the checkpoint that `ckpt` names; CheckpointError for none of our models."""
    folder = find_checkpoint(ckpt)
    if is_seed_checkpoint(folder):
        command = shlex.join(["velocity", "convert", str(folder), "NEW"])
        raise CheckpointError(f"{folder}: of the original VelocityLM; first convert it: {command}")
    shape = read_json(folder / CONFIG)
    if shape.get(QUANTIZATION) is not None:
        raise CheckpointError(
            f"{folder}: its weights are quantized, and the card would not say how to load them; "
            "publish the checkpoint that it was made from"
        )
    with explaining(folder / CONFIG):
        model = read_config_json(shape)
    if not all((folder / name).is_file() for name in (RUN_CONFIG, TRAINING_STATE)):
        return Facts(folder, shape, model, None, None, (), None)
    run, position = read_run_config(folder), read_position(folder)
    log = find_log(folder, position.step)
    manifests, began_with = find_manifests(run, position), read_beginning(folder)
    return Facts(folder, shape, model, run, position, manifests, log, began_with)


def find_manifests(run: Config, position: Position) -> tuple[Manifest | None, ...]:
    """The sets that the run read, if still where they were, in the versions they had then."""
    newest: dict[Path, Manifest] = {}
    for entry in run.data.entries:
        with suppress(OSError, ValueError):
            newest[Path(entry.shards)] = read_manifest(Path(entry.shards))
    found: list[Manifest | None] = []
    for dataset_id in position.dataset_ids:
        version = None
        for folder, manifest in newest.items():
            with suppress(OSError, ValueError):
                version = version or find_version(folder, manifest, dataset_id)
        found.append(version)
    return tuple(found)


def find_log(folder: Path, step: int) -> RunLog | None:
    """The log of the checkpoint's run until its step, if there is one.

    The run may have gone on: what came later is not about this checkpoint.
    """
    try:
        log = read_log(folder)
    except (OSError, ValueError):
        return None
    curves = {name: curve.cut(step) for name, curve in log.curves.items()}
    kept = {name: curve for name, curve in curves.items() if len(curve.steps)}
    return replace(log, curves=kept) if kept else None
