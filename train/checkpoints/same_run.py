"""Whether a run may go on from a checkpoint, and what it then does otherwise than before."""

from dataclasses import fields

from shards.edit.versions import keeps_places
from shards.reader import Shards
from shards.screen.lines import Say
from shards.where.condition import Condition, parse_condition
from train.checkpoints.resume import Start, is_same_folder
from train.config import Config
from train.step.schedule import describe_change, refuse_extension


def check_same_run(config: Config, shards: Shards, start: Start, say: Say) -> None:
    """Raise ValueError if a fixed setting differs from the checkpoint's; report other changes."""
    before, folder = start.config, start.path
    fixed = [
        ("data.max_seq_length", before.data.max_seq_length, config.data.max_seq_length),
        ("infrastructure.seed", before.infrastructure.seed, config.infrastructure.seed),
        ("training.optimizer", before.training.optimizer, config.training.optimizer),
        ("dataset_id", find_own_id(shards, start, say), shards.manifest.dataset_id),
    ]
    for entry in fields(config.model):
        old, new = getattr(before.model, entry.name), getattr(config.model, entry.name)
        fixed.append((f"model.{entry.name}", old, new))
    for name, old, new in fixed:
        if old != new:
            raise ValueError(
                f"{folder}: was trained with {name}={old}, now it is {new}; keep it as it was, or "
                "choose another infrastructure.output_dir for a new run"
            )
    before_where, where = before.data.where, config.data.where
    if read_where(before_where) != read_where(where):
        raise ValueError(
            f"{folder}: was trained with data.where={before_where or 'null'}, now it is "
            f"{where or 'null'}, so the order of samples would be another one; keep it as it was, "
            "or choose another infrastructure.output_dir for a new run"
        )
    refuse_extension(before.training, config.training, start.position.step, str(folder))
    old, new = before.infrastructure.log_folder, config.infrastructure.log_folder
    is_own = start.is_own
    if is_own and old.is_dir() and not is_same_folder(old, new):
        say(f"the log goes on in {new}; what was logged before is in {old}")
    old, new = before.data.attention, config.data.attention
    if old != new:
        say(f"data.attention was {old}, is now {new}")
    for entry in fields(config.training):
        old, new = getattr(before.training, entry.name), getattr(config.training, entry.name)
        if old != new:
            say(f"training.{entry.name} was {old}, is now {new}")
    changed = describe_change(before.training, config.training, start.position.step)
    if changed:
        say(changed)


def read_where(where: str | None) -> Condition | None:
    """What data.where means, however it is spelled."""
    return None if where is None else parse_condition(where)


def describe_samples(config: Config, world_size: int, start: Start) -> str | None:
    """What a step takes otherwise than before, and how to keep it; None if nothing."""
    training, history = config.training, start.position.history
    micro_step = training.micro_batch * world_size
    # Of the last step: the next one may have more by the batch warmup.
    last = max(start.position.step - 1, 0)
    now, before = config.samples_of_step(last, world_size), history[-1].samples_per_step
    if now == before:
        return None
    changed = f"a step takes {now:,} samples on {world_size:,} ranks, and took {before:,} before"
    if before % micro_step or last < training.batch_warmup_steps:
        return f"{changed}; to keep that, choose batch x accumulation x ranks anew"
    return f"{changed}; training.gradient_accumulation_steps={before // micro_step} keeps that"


def find_own_id(shards: Shards, start: Start, say: Say) -> str:
    """A checkpoint's dataset_id; the set's own if all remaining tokens kept their places.

    The order of samples is then the same, and only what was removed reads as ends of documents.
    """
    dataset_id = start.position.dataset_id
    if not keeps_places(shards.folder, shards.manifest, dataset_id):
        return dataset_id
    say(
        f"{shards.folder}: documents were removed since {start.path} was written (dataset_id "
        f"{dataset_id[:12]} became {shards.manifest.dataset_id[:12]}); every other token kept its "
        "place, so the run continues"
    )
    return shards.manifest.dataset_id
