"""The folder of checkpoints: save whole or not at all, keep the newest, find where to resume."""

import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from model.checkpoints.seal import CHECKSUMS, CheckpointError, list_checkpoints, seal, verify
from shards.disk.durable import sync_folder
from shards.disk.folders import make_folder, remove
from shards.screen import Say
from train.checkpoints.position import TRAINING_STATE
from train.config import InfrastructureConfig
from train.distributed import Rank

UNFINISHED = ".unfinished-"


def save_checkpoint(folder: Path, step: int, keep: int, fill: Callable[[Path], None]) -> Path:
    """Make folder/checkpoint-<step>, whose files `fill` writes; returns its path.

    It gets its name once all its files and their sha256s are on disk, so a kill at any moment
    leaves either the whole checkpoint or none. Only the newest `keep` checkpoints remain.
    """
    final = folder / f"checkpoint-{step}"
    unfinished = folder / f"{UNFINISHED}{final.name}"
    make_folder(folder)
    clear_unfinished(folder)
    unfinished.mkdir()
    try:
        fill(unfinished)
        seal(unfinished)
    except (OSError, SafetensorError) as error:
        remove(unfinished)
        raise ValueError(
            f"{final} could not be written ({error}); free some disk and run the same "
            "command again; the checkpoints before it are intact"
        ) from error
    if final.exists() or final.is_symlink():  # A damaged one, or one that the run was rewound past.
        remove_checkpoint(final)
    os.rename(unfinished, final)
    sync_folder(folder)
    for old in choose_superseded(list_checkpoints(folder), final, keep):
        remove_checkpoint(old)
    return final


def choose_superseded(checkpoints: list[Path], newest: Path, keep: int) -> list[Path]:
    """The checkpoints to remove once `newest` is saved, so that `keep` remain, itself included.

    Those of later steps go as well: they were damaged, so the run resumed from before them, and the
    next start would find them first.
    """
    place = checkpoints.index(newest)
    return checkpoints[:place] + checkpoints[place + keep :]


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed save left behind."""
    for leftover in folder.glob(f"{UNFINISHED}*"):
        remove(leftover)


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint, its seal first, so that a half-removed one never counts as complete.

    Of a link only the link goes: the checkpoint was put elsewhere to be kept.
    """
    if not checkpoint.is_symlink():
        (checkpoint / CHECKSUMS).unlink(missing_ok=True)
        sync_folder(checkpoint)
    remove(checkpoint)


def agree_on_start(config: InfrastructureConfig, rank: Rank, say: Say) -> Path | None:
    """The first rank's `find_start`, shared: one rank reads and checks, all start from the same."""
    start = find_start(config, say) if rank.is_first else None
    named = Path(str(config.resume_from_checkpoint))
    is_numbered = start is not None and start != named
    step = int(start.name.removeprefix("checkpoint-")) if start and is_numbered else 0
    shared = rank.sum(start is not None, is_numbered, step)
    is_found, has_number, step = (int(value) for value in shared)
    if is_found and not has_number:
        return named
    return Path(config.output_dir) / f"checkpoint-{step}" if is_found else None


def find_start(config: InfrastructureConfig, say: Say) -> Path | None:
    """The checkpoint to resume from; None = start from scratch.

    The newest complete and undamaged one in output_dir; if there is none, the one that
    infrastructure.resume_from_checkpoint names.
    """
    folder = Path(config.output_dir)
    candidates = list_checkpoints(folder)
    wanted = config.resume_from_checkpoint
    if wanted is None:
        if candidates:
            raise ValueError(
                f"{folder} holds {candidates[0].name}, but "
                "infrastructure.resume_from_checkpoint=null asks for a start from scratch; "
                "choose another infrastructure.output_dir, or leave the setting at auto"
            )
        return None
    for checkpoint in candidates:
        try:
            verify_training_checkpoint(checkpoint)
            return checkpoint
        except CheckpointError as error:
            say(f"{error}; trying the checkpoint before it")
    if candidates:
        raise ValueError(
            f"{folder}: every checkpoint in it is damaged; restore one, or move them away"
        )
    if wanted == "auto":
        return None
    verify_training_checkpoint(Path(wanted))
    return Path(wanted)


def verify_training_checkpoint(checkpoint: Path) -> None:
    """Raise CheckpointError if a checkpoint is damaged or has no training state to resume from."""
    if not checkpoint.is_dir():
        raise CheckpointError(
            f"{checkpoint}: no such checkpoint; set infrastructure.resume_from_checkpoint=null to "
            "start from scratch"
        )
    verify(checkpoint)
    if not (checkpoint / TRAINING_STATE).is_file():
        raise CheckpointError(
            f"{checkpoint}: holds a model but no {TRAINING_STATE}, so a run cannot resume from it"
        )
