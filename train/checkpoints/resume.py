"""Where a run starts: from scratch, from its own newest checkpoint, or from one that was named."""

import os
import platform
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.checkpoints.seal import (
    WEIGHTS,
    CheckpointError,
    list_checkpoints,
    list_weight_files,
    read_seal,
    verify,
)
from shards.disk.json_files import Json, load_json
from shards.screen.lines import Say
from train.checkpoints.folder import step_of
from train.checkpoints.position import (
    OPTIMIZER,
    RUN_CONFIG,
    TRAINING_STATE,
    Position,
    parse_position,
    read_run_config,
)
from train.config import Config, InfrastructureConfig
from train.ranks.distributed import Rank
from train.ranks.exchange import gather_json, share_json
from train.settings import config_from_dict

TRYING = "trying the checkpoint before it"


@dataclass(frozen=True)
class Start:
    """A checkpoint to go on from, and what it says; only the first rank may see its files."""

    path: Path
    # What training_state.json holds.
    state: Json
    # The settings it was made with.
    config: Config
    # Whether it is one of the run's own, in its output_dir.
    is_own: bool

    @property
    def position(self) -> Position:
        """How far the run had come."""
        return parse_position(self.state)


def agree_on_start(
    config: InfrastructureConfig, rank: Rank, say: Say, damaged: set[Path] | None = None
) -> Start | None:
    """The first rank's `find_start`, shared: one rank reads, all start from the same.

    Checkpoints in `damaged` are passed over. OSError if another rank sees a newer one than the
    first rank does.
    """
    checkpoints = list_checkpoints(Path(config.output_dir))
    seen = [platform.node(), step_of(checkpoints[0]) if checkpoints else None]
    sights = gather_json(rank, seen)
    rank.do_first(lambda: refuse_newer_elsewhere(config.output_dir, sights))
    path = rank.do_first(lambda: find_start(config, say, damaged if damaged is not None else set()))
    is_own = path is not None and path in list_checkpoints(Path(config.output_dir))
    found = share_json(rank, path and (str(path), is_own, *read_state(path)))
    if found is None:
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
            say(f"{config.output_dir}: no checkpoint is there; the run begins from scratch again")
        return None
    name, is_own, state, settings = found
    return Start(Path(name), state, config_from_dict(settings, f"{name}/{RUN_CONFIG}"), is_own)


def read_state(checkpoint: Path) -> tuple[Json, Json]:
    """What a checkpoint says about its run: its position, and the settings."""
    return load_json(checkpoint / TRAINING_STATE), load_json(checkpoint / RUN_CONFIG)


def refuse_newer_elsewhere(folder: str, sights: Sequence[tuple[str, int | None]]) -> None:
    """Raise OSError if the first rank does not see the newest checkpoint.

    Otherwise a run whose machines have folders of their own would lose steps, or start from
    scratch, whenever its first rank comes to lie on another machine. No ValueError, as a restart
    may mend it: the first rank may come to lie elsewhere again, or see what is new by then.

    >>> refuse_newer_elsewhere("out", [("node1", 40), ("node2", None)])
    """
    newest = max(range(len(sights)), key=lambda rank: sights[rank][1] or 0)
    (host, first), (other_host, other) = sights[0], sights[newest]
    if (other or 0) > (first or 0):
        here = f"checkpoint-{first} is the newest" if first is not None else "there is none"
        raise OSError(
            f"{folder}: rank {newest}, on {other_host}, sees checkpoint-{other} there, but for the "
            f"first rank, on {host}, {here}; put infrastructure.output_dir where all machines see "
            f"the same files, or copy {folder}/checkpoint-{other} from {other_host} to {host}"
        )


def find_start(config: InfrastructureConfig, say: Say, damaged: set[Path]) -> Path | None:
    """The checkpoint to resume from; None = start from scratch.

    The newest complete and undamaged one in output_dir, as far as is known before its tensors are
    read; if there is none, the one that infrastructure.resume_from_checkpoint names. ValueError if
    it names one that the newest does not come from. Those in `damaged` are passed over, and what
    is found damaged is put there.
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
        if checkpoint in damaged:
            continue
        try:
            verify_training_checkpoint(checkpoint)
        except CheckpointError as error:
            damaged.add(checkpoint)
            say(f"{error}; {TRYING}")
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
    """Raise CheckpointError if a checkpoint is damaged or has no training state to resume from.

    Its tensors are checked when they are read (train/checkpoints/load.py).
    """
    if not checkpoint.is_dir():
        raise CheckpointError(
            f"{checkpoint}: no such checkpoint; set infrastructure.resume_from_checkpoint=null to "
            "start from scratch"
        )
    sealed = check_seal(checkpoint)
    for name in (*(list_weight_files(sealed) or [WEIGHTS]), OPTIMIZER, TRAINING_STATE, RUN_CONFIG):
        if name not in sealed:
            raise CheckpointError(f"{checkpoint}: has no {name}, so a run cannot resume from it")


def check_seal(checkpoint: Path) -> Collection[str]:
    """The names of the files that a checkpoint's seal vouches for, most of them checked."""
    try:
        sealed = read_seal(checkpoint)
        verify(checkpoint, unread=(*list_weight_files(sealed), OPTIMIZER))
        return sealed
    except OSError as error:  # A bad sector of its disk, for instance.
        raise CheckpointError(f"{checkpoint}: cannot be read ({error})") from error
