"""Where a run starts: from scratch, from its own newest checkpoint, or from one that was named."""

import os
from pathlib import Path

from model.checkpoints.seal import CheckpointError, list_checkpoints, verify
from shards.screen.lines import Say
from train.checkpoints.position import TRAINING_STATE, read_run_config
from train.config import InfrastructureConfig
from train.ranks.distributed import Rank


def agree_on_start(config: InfrastructureConfig, rank: Rank, say: Say) -> Path | None:
    """The first rank's `find_start`, shared: one rank reads and checks, all start from the same."""
    start = rank.do_first(lambda: find_start(config, say))
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
    infrastructure.resume_from_checkpoint names. ValueError if it names one that the newest does not
    come from.
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
        except CheckpointError as error:
            say(f"{error}; trying the checkpoint before it")
            continue
        if wanted != "auto":
            check_descent(checkpoint, wanted, say)
        return checkpoint
    if candidates:
        raise ValueError(
            f"{folder}: every checkpoint in it is damaged; restore one, or move them away"
        )
    if wanted == "auto":
        return None
    verify_training_checkpoint(Path(wanted))
    return Path(wanted)


def check_descent(newest: Path, named: str, say: Say) -> None:
    """Raise ValueError unless a run's newest checkpoint is the one named, or comes from it.

    It comes from it if its run was started with the same name: then this is a restart.
    """
    if is_same_folder(newest, named):
        return
    before = read_run_config(newest).infrastructure.resume_from_checkpoint
    if before and is_same_folder(before, named):
        say(f"{newest} comes from {named}, which infrastructure.resume_from_checkpoint names")
        return
    raise ValueError(
        f"infrastructure.resume_from_checkpoint names {named}, but {newest.parent} holds "
        f"{newest.name}, which does not come from it; leave the setting at auto to go on from "
        f"{newest}, or choose another infrastructure.output_dir to go on from {named}"
    )


def is_same_folder(one: Path | str, other: Path | str) -> bool:
    """Whether two names mean one folder, which need not be there any more."""
    return str(one) == str(other) or os.path.realpath(one) == os.path.realpath(other)


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
