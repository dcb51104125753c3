"""The folder of checkpoints: saved whole or not at all, and only the newest kept."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from model.checkpoints.seal import CHECKSUMS, Sealed, list_checkpoints, seal
from shards.disk.durable import sync_folder
from shards.disk.folders import make_folder, remove
from train.checkpoints.position import OPTIMIZER, RUN_CONFIG, TRAINING_STATE

UNFINISHED = ".unfinished-"
REMOVED = ".removed-"


class SaveError(OSError):
    """A checkpoint that could not be written; those before it are intact."""


def save_checkpoint(
    folder: Path, step: int, fill: Callable[[Path], Mapping[str, Sealed] | None]
) -> Path:
    """Make folder/checkpoint-<step>, whose files `fill` writes; returns its path.

    `fill` returns what it has put on disk and hashed itself, if anything.

    It gets its name once all its files and their sha256s are on disk, so a kill at any moment
    leaves either the whole checkpoint or none. SaveError, and no trace, if it cannot be written.
    """
    final = folder / f"checkpoint-{step}"
    unfinished = folder / f"{UNFINISHED}{final.name}"
    try:
        make_folder(folder)
        clear_leftovers(folder)
        unfinished.mkdir()
        seal(unfinished, fill(unfinished))
        if os.path.lexists(final):  # A damaged one, or one that the run was rewound past.
            remove_checkpoint(final)
        os.rename(unfinished, final)
        sync_folder(folder)
    except OSError as error:
        remove(unfinished, ignore_errors=True)
        raise SaveError(
            f"{final} could not be written ({error}); the checkpoints before it are intact"
        ) from error
    return final


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name.

    >>> step_of(Path("checkpoints/checkpoint-2000"))
    2000
    """
    return int(checkpoint.name.removeprefix("checkpoint-"))


def prune_checkpoints(
    folder: Path, newest: Path, keep: int, is_kept: Callable[[int], bool] = lambda step: False
) -> None:
    """Remove all but the newest `keep` checkpoints, `newest` included, and steps that are kept.

    Those of later steps go as well: they were damaged, so the run resumed from before them, and the
    next start would find them first.
    """
    checkpoints = list_checkpoints(folder)
    if newest not in checkpoints:  # Somebody has moved it away.
        return
    place = checkpoints.index(newest)
    old = [path for path in checkpoints[place + keep :] if not is_kept(step_of(path))]
    for path in checkpoints[:place] + old:
        remove_checkpoint(path)


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
