"""Whether a run may go on from a checkpoint, and what it then does otherwise than before."""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from shards.mixture.sets import Sets
from shards.screen.lines import Say
from train.checkpoints.resume import Start, is_same_folder
from train.checkpoints.sets import KEEP, check_sets
from train.config import Config
from train.step.schedule import describe_change, refuse_extension

# Of section training: what decides which tensors a checkpoint has, and what they mean.
FIXED = ("optimizer", "adapter", "adapter_rank", "adapter_alpha", "adapter_targets")


def check_same_run(config: Config, sets: Sets, start: Start, say: Say) -> None:
    """Raise ValueError if a fixed setting differs from the checkpoint's; report other changes."""
    before, folder = start.config, start.path
    fixed = [
        ("data.max_seq_length", before.data.max_seq_length, config.data.max_seq_length),
        ("infrastructure.seed", before.infrastructure.seed, config.infrastructure.seed),
        *(
            (f"training.{name}", getattr(before.training, name), getattr(config.training, name))
            for name in FIXED
        ),
    ]
    refuse_changes(folder, fixed)
    # Before the model: with another tokenizer, it is the set that is wrong.
    check_sets(sets, start, say)
    model = [
        (f"model.{e.name}", getattr(before.model, e.name), getattr(config.model, e.name))
        for e in fields(config.model)
    ]
    refuse_changes(folder, model)
    refuse_extension(before.training, config.training, start.position.step, str(folder))
    old, new = before.infrastructure.log_folder, config.infrastructure.log_folder
    is_own = start.is_own
    if is_own and old.is_dir() and not is_same_folder(old, new):
        say(f"the log goes on in {new}; what was logged before is in {old}")
    if before.data.attention != config.data.attention:
        say(f"data.attention was {before.data.attention}, is now {config.data.attention}")
    for entry in fields(config.training):
        old, new = getattr(before.training, entry.name), getattr(config.training, entry.name)
        if old != new:
            say(f"training.{entry.name} was {old}, is now {new}")
    changed = describe_change(before.training, config.training, start.position.step)
    if changed:
        say(changed)


def refuse_changes(folder: Path, settings: Iterable[tuple[str, object, object]]) -> None:
    """ValueError if one of these settings, by its name, was another than it is now."""
    for name, old, new in settings:
        if old != new:
            raise ValueError(f"{folder}: was trained with {name}={old}, now it is {new}; {KEEP}")


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
