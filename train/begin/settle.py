"""What a run with model.start starts from, the same on all ranks; or what its checkpoint has."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from model.checkpoints.compare import check_weights
from model.checkpoints.folder import name_origin
from model.checkpoints.seal import list_checkpoints
from model.checkpoints.weight_files import find_weight_files
from model.checkpoints.weights import list_weights
from model.config import ModelConfig
from shards.disk.json_files import Json
from shards.reader import Shards
from shards.screen.lines import Say
from train.begin.shape import SETTING, Beginning, find_beginning, grow, take_shape
from train.begin.weights import describe_origin
from train.checkpoints.position import read_run_config
from train.checkpoints.resume import is_same_folder
from train.checkpoints.sets import KEEP
from train.config import Config
from train.ranks.distributed import Rank
from train.ranks.exchange import share_json


def settle_start(
    config: Config, rank: Rank, shards: Shards, say: Say
) -> tuple[Config, Beginning | None]:
    """The settings with the shape of the folder that model.start names, and that folder.

    A run that has checkpoints of its own takes theirs: the folder is not read again, and None. All
    ranks call this together, and the first one alone reads. Raises ValueError, in one line, for
    a folder or settings with which a run cannot begin.
    """
    if config.model.start is None:
        return config, None
    found: Json = share_json(rank, rank.do_first(lambda: find_shape(config, shards, say)))
    origin, shape = found["origin"], ModelConfig(**found["shape"])
    config = take_shape(config, shape, origin)
    if not found["is_new"]:
        return config, None
    own = ModelConfig(**found["own"])
    return config, Beginning(Path(origin), own, found["known_ids"])


def find_shape(config: Config, shards: Shards, say: Say) -> Json:
    """The same as plain data, on the first rank."""
    start, infrastructure = config.model.start, config.infrastructure
    assert start is not None
    named = infrastructure.resume_from_checkpoint
    if named not in (None, "auto"):
        raise ValueError(
            f"{SETTING}={start} starts a new run, but infrastructure.resume_from_checkpoint="
            f"{named} resumes another one; set only one of the two"
        )
    before = find_own(list_checkpoints(Path(infrastructure.output_dir)))
    if before is not None:
        checkpoint, model = before
        if model.start is None or not is_same_folder(model.start, start):
            raise ValueError(
                f"{checkpoint}: its run began with {SETTING}={model.start or 'null'}, now it is "
                f"{start}; {KEEP}"
            )
        return {"is_new": False, "origin": str(checkpoint), "shape": asdict(model)}
    found = find_beginning(start, shards)
    files = find_weight_files(found.folder)
    check_weights(found.shape, list_weights(files), name_origin(files))
    shape = grow(found, shards)
    say(f"the run begins with {found.folder}")
    if shape.num_ids > found.shape.num_ids:
        say(
            f"{found.folder}: its embedding has {found.shape.num_ids:,} rows, but the set has "
            f"{shape.num_ids:,} ids; {shape.num_ids - found.shape.num_ids:,} rows are added, each "
            "the mean of its tokens' rows"
        )
    return {
        "is_new": True,
        "origin": str(found.folder),
        "shape": asdict(shape),
        "own": asdict(found.shape),
        "known_ids": found.known_ids,
    }


def find_again(config: Config, rank: Rank, shards: Shards, origin: Json) -> Beginning:
    """The folder that a run began with, for what needs its weights again.

    `origin` is what a checkpoint says of it. All ranks call this together. ValueError if other
    weights are there now.
    """

    def find() -> Json:
        # model.start may name a run that has newer checkpoints by now.
        before = Path(origin["folder"])
        start = before if before.is_dir() else config.model.start
        found = find_beginning(str(start), shards)
        now = describe_origin(found.folder)
        if now["weights_sha256"] != origin["weights_sha256"]:
            raise ValueError(
                f"{found.folder}: its weights are not those that the run began with (sha256 "
                f"{now['weights_sha256'][:12]}, then {origin['weights_sha256'][:12]}); restore "
                f"{before}"
            )
        return {"folder": now["folder"], "own": asdict(found.shape), "known_ids": found.known_ids}

    again: Json = share_json(rank, rank.do_first(find))
    return Beginning(Path(again["folder"]), ModelConfig(**again["own"]), again["known_ids"])


def find_own(checkpoints: Sequence[Path]) -> tuple[Path, ModelConfig] | None:
    """The newest of a run's checkpoints whose settings can be read, and its model's."""
    for checkpoint in checkpoints:
        try:
            return checkpoint, read_run_config(checkpoint).model
        except (OSError, ValueError):  # Who resumes says so.
            continue
    return None
