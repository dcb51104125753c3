"""The folder of checkpoints: saved whole or not at all, and only the newest kept."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from model.checkpoints.seal import CHECKSUMS, list_checkpoints, seal
from shards.disk.durable import sync_folder
from shards.disk.folders import make_folder, remove
from train.checkpoints.position import RUN_CONFIG, TRAINING_STATE
from train.checkpoints.state import OPTIMIZER

UNFINISHED = ".unfinished-"
REMOVED = ".removed-"


class SaveError(OSError):
    """A checkpoint that could not be written; those before it are intact."""


def save_checkpoint(folder: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Make folder/checkpoint-<step>, whose files `fill` writes; returns its path.

    It gets its name once all its files and their sha256s are on disk, so a kill at any moment
    leaves either the whole checkpoint or none. SaveError, and no trace, if it cannot be written.
    """
    final = folder / f"checkpoint-{step}"
    unfinished = folder / f"{UNFINISHED}{final.name}"
    try:
        make_folder(folder)
        clear_leftovers(folder)
        unfinished.mkdir()
        fill(unfinished)
        seal(unfinished)
        if os.path.lexists(final):  # A damaged one, or one that the run was rewound past.
            remove_checkpoint(final)
        os.rename(unfinished, final)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        remove(unfinished, ignore_errors=True)
        raise SaveError(
            f"{final} could not be written ({error}); the checkpoints before it are intact"
        ) from error
    return final


def prune_checkpoints(folder: Path, newest: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, `newest` included.

    Those of later steps go as well: they were damaged, so the run resumed from before them, and the
    next start would find them first.
    """
    checkpoints = list_checkpoints(folder)
    place = checkpoints.index(newest)
    for old in checkpoints[:place] + checkpoints[place + keep :]:
        remove_checkpoint(old)


def tidy_checkpoints(folder: Path, start: Path | None, keep: int) -> None:
    """Remove what a run that was killed while it saved or pruned has left behind.

    `start` is the checkpoint that the run goes on from; later ones stay until it has saved again.
    """
    if not folder.is_dir():
        return
    clear_leftovers(folder)
    checkpoints = list_checkpoints(folder)
    if start in checkpoints:
        for old in checkpoints[checkpoints.index(start) + keep :]:
            remove_checkpoint(old)


def clear_leftovers(folder: Path) -> None:
    """Remove half-written and half-removed checkpoints.

    A checkpoint-<step> without a seal is one if it holds any of a run's state, or nothing. Others
    were put there by someone else and stay.
    """
    for path in list(folder.iterdir()):
        if path.name.startswith((UNFINISHED, REMOVED)) or (
            re.fullmatch(r"checkpoint-\d+", path.name) and is_half_removed(path)
        ):
            remove(path)


def is_half_removed(path: Path) -> bool:
    """Whether a folder without a seal is what a killed removal left of a checkpoint."""
    if path.is_symlink() or not path.is_dir() or (path / CHECKSUMS).exists():
        return False
    names = {entry.name for entry in path.iterdir()}
    return not names or not names.isdisjoint({TRAINING_STATE, RUN_CONFIG, OPTIMIZER})


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint: its name first, so that a half-removed one is never taken for one."""
    removed = checkpoint.with_name(f"{REMOVED}{checkpoint.name}")
    remove(removed)
    os.rename(checkpoint, removed)
    sync_folder(checkpoint.parent)
    remove(removed)
