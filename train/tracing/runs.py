"""Opens a run to be traced: by the checkpoints that it left, or by its settings."""

from collections.abc import Mapping
from pathlib import Path

from model.checkpoints.seal import list_checkpoints
from shards.edit.versions import find_version
from shards.mixture.entries import compute_shares
from shards.mixture.mixture import ALONE, Mixture, Stage
from shards.mixture.sets import MixedOrder, Sets, Source, open_source
from shards.reader import Shards, open_shards
from shards.screen.lines import Say
from train.checkpoints.history import History, plan_history
from train.checkpoints.position import (
    TRAINING_STATE,
    check_same_choice,
    read_position,
    read_run_config,
)
from train.config import Config
from train.tracing.steps import Tracer

DEFAULT_RUN = Path("checkpoints")
# More than any run takes: they are held in memory.
MAX_STEP_SAMPLES = 1 << 22


def trace_run(shards: Shards, folder: Path) -> Tracer:
    """A tracer for a run that left checkpoints, over the steps its newest one has done.

    ValueError if the run has not read this set.
    """
    checkpoint = find_checkpoint(folder)
    position, config = read_position(checkpoint), read_run_config(checkpoint)
    found: dict[int, Source] = {}
    for number, known in enumerate(position.sets):
        version = find_version(shards.folder, shards.manifest, known.dataset_id)
        if version is not None:
            found[number] = open_part(shards, config, known.where, version.num_tokens("train"))
            check_same_choice(found[number].choice, known, checkpoint)
    if not found:
        raise ValueError(
            f"{checkpoint}: was trained on dataset_id {', '.join(position.dataset_ids)}, "
            f"but {shards.folder} is {shards.manifest.dataset_id}"
        )
    order = order_parts(found, position.mixture)
    return Tracer(shards, position.history, position.step, order)


def open_part(
    shards: Shards, config: Config, where: str | None, num_tokens: int | None = None
) -> Source:
    """What a run reads of a set: all, or of its first `num_tokens` if it had no more."""
    length = config.data.max_seq_length or shards.manifest.row_tokens or 1  # 0 is auto.
    return open_source(shards, where, length, config.infrastructure.seed, num_tokens)


def order_parts(found: Mapping[int, Source], mixture: Mixture) -> MixedOrder:
    """The order of a run's samples, of which only those of one set are looked up."""
    shares = tuple(mixture.shares[number] for number in found)
    return MixedOrder(Sets(tuple(found.values()), shares), mixture, tuple(found))


def trace_sets(folder: Path | None, run: Path) -> list[Tracer]:
    """Tracers for a run that left checkpoints: over this set, or over all where it read them last.

    ValueError if one is not there, or the run has not read it.
    """
    folders = (
        [folder] if folder is not None else list_folders(read_run_config(find_checkpoint(run)))
    )
    return [trace_run(open_shards(name), run) for name in dict.fromkeys(folders)]


def plan_sets(folder: Path | None, config: Config, num_ranks: int) -> list[Tracer]:
    """The same for a run with these settings, over all its steps."""
    folders = [folder] if folder is not None else list_folders(config)
    return [trace_settings(open_shards(name), config, num_ranks) for name in dict.fromkeys(folders)]


def list_folders(config: Config) -> list[Path]:
    """The folders of all sets that a run reads."""
    return [Path(entry.shards) for entry in config.data.entries]


def find_checkpoint(folder: Path) -> Path:
    """The newest checkpoint in a run's folder, or the folder if it is one; ValueError for none."""
    if (folder / TRAINING_STATE).is_file():
        return folder
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise ValueError(
            f"{folder}: no checkpoint in it; name a run's folder with --run, or give its "
            "settings with --config and --ranks"
        )
    return checkpoints[0]


def find_run(shards: Shards, folder: Path | None, say: Say) -> Tracer | None:
    """The run whose steps are reported; None if none was named and the default one does not fit."""
    if folder is not None:
        return trace_run(shards, folder)
    if not DEFAULT_RUN.is_dir():
        return None
    try:
        return trace_run(shards, DEFAULT_RUN)
    except ValueError as error:
        say(f"{error}; no steps are reported (name a run with --run)")
        return None


def trace_settings(shards: Shards, config: Config, num_ranks: int) -> Tracer:
    """A tracer for a run with these settings, over all its steps.

    Raises ValueError for a number of ranks that no run has, and a set that is not in its mixture.
    """
    per_step = config.samples_per_step(num_ranks)
    if num_ranks < 1 or per_step > MAX_STEP_SAMPLES:
        per_rank = config.samples_per_step(1)
        raise ValueError(
            f"--ranks {num_ranks!s:.60} x {per_rank:,} samples a rank: expected at least 1 rank, "
            f"and at most {MAX_STEP_SAMPLES:,} samples a step"
        )
    history = plan_history(config.list_batches(num_ranks))
    num_steps = config.training.num_training_steps
    if config.data.mixture is None:
        return make_tracer(shards, config, history, num_steps)
    entries = {
        number: entry
        for number, entry in enumerate(config.data.mixture)
        if Path(entry.shards) == shards.folder
    }
    if not entries:
        names = ", ".join(str(name) for name in list_folders(config))
        raise ValueError(f"{shards.folder}: is not one of the sets in data.mixture, {names}")
    shares = compute_shares([entry.weight for entry in config.data.mixture])
    found = {number: open_part(shards, config, entry.where) for number, entry in entries.items()}
    order = order_parts(found, Mixture((Stage(0, shares),)))
    return Tracer(shards, history, num_steps, order)


def make_tracer(
    shards: Shards,
    config: Config,
    history: History,
    num_steps: int,
    num_tokens: int | None = None,
) -> Tracer:
    """A tracer over the train split, or over its first `num_tokens` if the run had no more."""
    source = open_part(shards, config, config.data.where, num_tokens)
    return Tracer(shards, history, num_steps, order_parts({0: source}, ALONE))
