"""What a run says at its start: what it runs on, how far it goes, what it needs; or why it cannot.

Refused is only what surely fails. What may fail is warned of, as estimates are estimates.
"""

import os
import shutil
from pathlib import Path

import torch

from model.checkpoints.seal import list_checkpoints
from shards.disk.memory import find_memory
from shards.disk.space import check_space
from shards.mixture.sets import MixedOrder, Sets
from shards.screen.lines import Say, format_bytes, format_count, format_plural
from shards.where.choice import describe_choice
from train.config import Config
from train.ranks.distributed import Rank
from train.ranks.strategy import is_sharding
from train.start.choose import largest_config
from train.start.length import describe_all_epochs, describe_step
from train.start.memory import Memory, estimate_memory
from train.start.objective import describe_objective
from train.step.muon import choose_dtype
from train.step.schedule import describe_schedule

LABEL_WIDTH = 12


def check_start(config: Config, rank: Rank, order: MixedOrder, first_step: int, say: Say) -> None:
    """Say what the run is and needs; ValueError if the machine cannot hold it.

    `order` is that of its samples, and `first_step` the number of steps done before.
    """
    need = estimate_memory(config, rank.device.type, rank.world_size)
    available = find_available(rank)
    refuse_too_large(config, rank, need, available)
    batch = describe_batch(config, rank)
    lines = {
        "device": describe_device(config, rank),
        "model": describe_model(config, rank),
        "step": batch["step"],
        "run": describe_length(config, rank, order, first_step),
        "optimizer": describe_optimizer(config, rank),
        "rate": describe_schedule(config.training),
        **describe_objective(config),
        "validation": describe_validation(config, order.sets.validation),
        "activations": batch["activations"],
        "memory": describe_memory(need, available),
        "checkpoints": describe_checkpoints(config, rank, first_step),
        "logs": str(config.infrastructure.log_folder),
    }
    for source in order.sets.sources:
        if source.choice.where is not None:
            is_alone = len(order.sets.sources) == 1
            of = "" if is_alone else f" of {source.name}, where {source.choice.where}"
            say(f"{'data.where':<{LABEL_WIDTH}} {describe_choice(source.choice)}{of}")
    for label, text in lines.items():
        say(f"{label:<{LABEL_WIDTH}} {text}")


def tell_change(before: Config, now: Config, rank: Rank, say: Say) -> None:
    """Say again what was said of a step and its activations, where it is not so any more."""
    said = describe_batch(before, rank)
    for label, text in describe_batch(now, rank).items():
        if text != said[label]:
            say(f"{label:<{LABEL_WIDTH}} {text}")


def describe_batch(config: Config, rank: Rank) -> dict[str, str]:
    """What a trial on the GPU may change, by label: a step, and what of its activations is kept."""
    step = describe_step(config, rank.world_size) + describe_compression(config, rank)
    return {"step": step, "activations": describe_activations(config)}


def find_available(rank: Rank) -> tuple[int, int] | None:
    """A rank's share of the memory of its device: all of it, and what is free; None if unknown."""
    if rank.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(rank.device)
        return total, free
    memory = find_memory()
    if memory is None:
        return None
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return memory[0] // ranks, memory[1] // ranks


def refuse_too_large(
    config: Config, rank: Rank, need: Memory, available: tuple[int, int] | None
) -> None:
    """ValueError, with what would fit, if the state alone is more than there is."""
    if available is None or need.state <= available[0]:
        return
    where = "GPU" if rank.device.type == "cuda" else "machine"
    num_ids = config.model.num_ids
    fitting = largest_config(rank.device.type, available[0], rank.world_size, num_ids)
    advice = f"--config {fitting.name} fits" if fitting else "none of the named configs fits"
    raise ValueError(
        f"the model is too large for this {where}: weights, gradients and optimizer of its "
        f"{config.model.num_parameters():,} parameters take {format_bytes(need.state)} on each "
        f"rank, {format_bytes(need.peak)} with the rest, and a rank has "
        f"{format_bytes(available[0])}; {advice} (--config list shows all)"
    )


def describe_device(config: Config, rank: Rank) -> str:
    """What the ranks compute on, and in which precision."""
    device, precision = rank.device, config.training.precision
    if device.type == "cuda":
        return f"{rank.world_size} x {torch.cuda.get_device_name(device)}, {precision}"
    if device.type == "mps":
        return f"Apple GPU (MPS), {precision}"
    ranks = f"{rank.world_size} ranks, each with " if rank.world_size > 1 else ""
    text = f"CPU, {ranks}{format_plural(torch.get_num_threads(), 'thread')}, {precision}"
    slow = ", which most CPUs compute slowly; training.precision=fp32 is faster"
    return text + (slow if precision != "fp32" else "")


def describe_model(config: Config, rank: Rank) -> str:
    """How large the model is, and whether each rank has all of it."""
    is_part = is_sharding(config.distributed, rank)
    part = f", 1/{rank.world_size} of each weight a rank (fsdp)" if is_part else ""
    return f"{config.describe_size()}{part}"


def describe_compression(config: Config, rank: Rank) -> str:
    """How gradients are sent, where that costs exactness."""
    kind = config.distributed.gradient_compression
    return "" if rank.world_size == 1 or kind == "none" else f"; gradients sent as {kind}"


def describe_length(config: Config, rank: Rank, order: MixedOrder, first_step: int) -> str:
    """How many steps and tokens there are, and how often the whole run sees each of its sets'."""
    num_steps, tokens = config.training.num_training_steps, config.count_tokens(rank.world_size)
    steps = f"{num_steps:,} steps"
    if first_step:
        steps += f", {min(first_step, num_steps):,} of them done"
    epochs = describe_all_epochs(order.plan_epochs(tokens), config.data.where is not None)
    return f"{steps}; {format_count(tokens)} tokens, {epochs}"


def describe_optimizer(config: Config, rank: Rank) -> str:
    """What makes updates of gradients, and what Muon multiplies in."""
    if config.training.optimizer == "adamw":
        return "AdamW"
    dtype = str(choose_dtype(rank.device)).removeprefix("torch.")
    dealt = f", dealt out over {rank.world_size:,} ranks" if rank.world_size > 1 else ""
    return f"Muon for the blocks' matrices (in {dtype}{dealt}), AdamW for the rest"


def describe_validation(config: Config, sets: Sets) -> str:
    """When a validation loss is taken and over how much; or that none is, and why."""
    length = config.data.max_seq_length
    sizes = [source.shards.manifest.num_tokens("validation") for source in sets.sources]
    # Rows of a packed set need no token beyond their last.
    more = 1 if sets.first.manifest.row_tokens is None else 0
    counts = [min(config.training.eval_windows, max(size - more, 0) // length) for size in sizes]
    if any(counts):
        when = f"every {config.training.eval_steps:,} steps, "
        if len(counts) == 1:
            return f"{when}{counts[0]:,} windows of {length:,}"
        named = (f"{count:,} of {name}" for count, name in zip(counts, sets.names, strict=True))
        return f"{when}windows of {length:,}: {', '.join(named)}"
    held = max(sizes)
    if config.training.eval_windows == 0:
        return "none: training.eval_windows is 0"
    if held == 0:
        which = "the set has" if len(sizes) == 1 else "no set has"
        split = "no validation split" if len(sizes) == 1 else "a validation split"
        return f"none: {which} {split} (prep's --validation-fraction makes one)"
    return (
        f"none: a window has {length + 1:,} tokens (data.max_seq_length plus one), and the "
        f"validation split {held:,}"
    )


def describe_activations(config: Config) -> str:
    """What is computed again in the backward pass."""
    kind = config.training.activation_checkpointing
    what = {
        "none": "all kept for the backward pass",
        "selective": "what is cheap is computed again",
        "full": "all computed again, block by block",
    }
    return f"{what[kind]} (activation_checkpointing: {kind})"


def describe_memory(need: Memory, available: tuple[int, int] | None) -> str:
    """What a rank is expected to need, and what is free."""
    text = f"about {format_bytes(need.peak)} a rank"
    if available is None:
        return text
    text += f", {format_bytes(available[1])} free"
    if need.peak <= available[1]:
        return text
    return f"{text}: it may not fit; if it does not, set a smaller training.batch_size_per_device"


def describe_checkpoints(config: Config, rank: Rank, first_step: int) -> str:
    """Where they go, how large they are and how many are kept.

    Raises ValueError on the first rank, which writes them, if not even one has room on the disk. A
    run that goes on may have room once older ones are removed.
    """
    folder, keep = Path(config.infrastructure.output_dir), config.training.max_checkpoints
    size = config.checkpoint_bytes
    there = folder.absolute()
    while not there.is_dir():
        there = there.parent
    if rank.is_first and first_step == 0:
        check_space(there, size, "choose another infrastructure.output_dir", "for a checkpoint")
    free = shutil.disk_usage(there).free
    text = f"{folder}: {format_bytes(size)} each, {keep} kept, {format_bytes(free)} of disk free"
    missing = max(config.disk_bytes - len(list_checkpoints(folder)) * size, size)
    return text + (": too little for all of them" if free < missing else "")
