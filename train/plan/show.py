"""A plan as lines for people, and as JSON for programs."""

from dataclasses import asdict, fields
from typing import Any

from shards.screen.lines import (
    align,
    format_bytes,
    format_count,
    format_number,
    format_plural,
    format_time,
)
from train.config import Config
from train.gpus import GPUS
from train.plan.plan import Machines, Plan
from train.plan.sizes import show_size, tabulate_sizes
from train.start.fit import KINDS
from train.start.length import describe_all_epochs, describe_step
from train.start.memory import Memory

LABEL_WIDTH = 12
# What each part of the memory is called.
PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "exchange": "communication",
    "activations": "activations",
    "working": "loss / one block's backward",
    "base": "CUDA and torch",
}


def describe_plan(plan: Plan) -> list[str]:
    """The plan as lines: what it is for, then the memory as a table."""
    config, machines = plan.config, plan.machines
    lines = {
        "model": config.describe_size(),
        "GPUs": describe_machines(config, machines),
        "a step": f"{describe_step(config, machines.num_gpus)}; "
        f"activation_checkpointing={config.training.activation_checkpointing}",
        "the run": describe_run(plan),
        "speed": describe_cost(plan),
        "checkpoints": f"{format_bytes(config.checkpoint_bytes)} each; "
        f"{config.training.max_checkpoints:,} kept and one being written take "
        f"{format_bytes(config.disk_bytes)} of disk",
        "memory": describe_memory(plan.memory),
        "": describe_fit(plan),
    }
    told = [f"{label:<{LABEL_WIDTH}} {text}" for label, text in lines.items() if text]
    return [*told, "", *describe_table(plan)]


def describe_machines(config: Config, machines: Machines) -> str:
    """How many GPUs of which kind, and how they share the model."""
    number = machines.num_gpus
    gpus = f"{number:,} x {machines.gpu.short}" if machines.gpu else format_plural(number, "GPU")
    text = f"{gpus} of {format_bytes(machines.num_bytes)}"
    shared = f", {config.distributed.strategy}" if machines.num_gpus > 1 else ""
    return f"{text}, {config.training.precision}{shared}"


def describe_run(plan: Plan) -> str:
    """How long the run is, in steps, tokens and epochs."""
    steps = plan.config.training.num_training_steps
    ratio = format_number(plan.tokens / plan.config.model.num_parameters())
    text = f"{steps:,} steps; {format_count(plan.tokens)} tokens, {ratio} a parameter"
    is_choice = plan.config.data.where is not None
    return f"{text}; {describe_all_epochs(plan.epochs, is_choice)}" if plan.epochs else text


def describe_cost(plan: Plan) -> str:
    """Speed, time and money; what to give where they are not known."""
    if plan.cost is None:
        return "not known without the kind of GPU: --gpu"
    cost = plan.cost
    # Fewer FLOPs are computed, as many as documents are long; MFU is a convention.
    is_whole = plan.config.data.attention == "window"
    counted = "" if is_whole else " by whole windows, not documents"
    text = (
        f"{cost.tokens_per_second:,.0f} tokens/s at {format_number(100 * cost.mfu)}% MFU{counted}: "
        f"{format_time(cost.days * 86_400)}, {format_number(cost.gpu_hours)} GPU-hours"
    )
    return text if cost.money is None else f"{text}; costs {format_number(cost.money)}"


def describe_memory(memory: Memory) -> str:
    """A rank's memory by part, the largest first."""
    parts = {PARTS[entry.name]: getattr(memory, entry.name) for entry in fields(memory)}
    named = [
        f"{name} {format_bytes(size)}"
        for name, size in sorted(parts.items(), key=lambda part: -part[1])
        if size
    ]
    return f"{format_bytes(memory.peak)} a GPU: {', '.join(named)}"


def describe_fit(plan: Plan) -> str:
    """What helps where the model does not fit; nothing where it does."""
    if plan.fits:
        return ""
    has, strategy = plan.machines.num_bytes, plan.config.distributed.strategy
    text = f"does not fit {format_bytes(has)}"
    kinds = (plan.config.training.activation_checkpointing, *KINDS)
    if kind := next((kind for kind in kinds if plan.largest.get(kind)), None):
        return (
            f"{text}; with training.activation_checkpointing={kind} a "
            f"training.batch_size_per_device of up to {plan.largest[kind]:,} does"
        )
    state = plan.memory.state
    if strategy == "ddp" and state > has:
        text += (
            f": with distributed.strategy=ddp never, as weights, gradients and optimizer take "
            f"{format_bytes(state)} on every GPU"
        )
    if plan.config.training.adapter is not None:
        return f"{text}; an adapter's model is whole on every GPU"
    if plan.fewest_ranks is None:
        return f"{text}; nor, with distributed.strategy=fsdp, any number of such GPUs"
    return (
        f"{text}; distributed.strategy=fsdp on {format_plural(plan.fewest_ranks, 'GPU')} or more "
        "does, with activation_checkpointing=full and a micro-batch of 1"
    )


def describe_table(plan: Plan) -> list[str]:
    """Memory by micro-batch and kind of checkpointing, in columns."""
    has = plan.machines.num_bytes
    rows = [["micro-batch", *KINDS]]
    for size, needs in plan.table.items():
        cells = [format_bytes(needs[kind]) for kind in KINDS]
        cells = [
            cell if needs[kind] <= has else f"({cell})"
            for kind, cell in zip(KINDS, cells, strict=True)
        ]
        rows.append([f"{size:,}", *cells])
    rows.append(["fits up to", *(show_size(plan.largest[kind]) for kind in KINDS)])
    return [*align(rows), "", "(in brackets: does not fit; all are estimates, see docs/plan.md)"]


def describe_sizes(config: Config) -> list[str]:
    """What fits GPUs of the common sizes, for a plan that names none."""
    return [
        f"{config.model.num_parameters():,} parameters; the largest micro-batch, in samples of "
        f"{config.data.max_seq_length:,}, by GPU and training.activation_checkpointing:",
        "",
        *align(tabulate_sizes(config)),
        "",
        f"(more with --gpu: {', '.join(gpu.short for gpu in GPUS)}; or --gpu-memory 80)",
    ]


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain data: sizes in bytes, settings as the run would have them."""
    training, machines = plan.config.training, plan.machines
    samples = plan.config.samples_per_step(machines.num_gpus)
    return {
        "parameters": plan.config.model.num_parameters(),
        "trained_parameters": plan.config.trained_parameters,
        "gpus": machines.num_gpus,
        "gpu": machines.gpu.short if machines.gpu else None,
        "gpu_bytes": machines.num_bytes,
        "strategy": plan.config.distributed.strategy,
        "precision": training.precision,
        "fits": plan.fits,
        "micro_batch": training.micro_batch,
        "micro_steps": training.micro_steps,
        "activation_checkpointing": training.activation_checkpointing,
        "step_tokens": samples * plan.config.data.max_seq_length,
        "steps": training.num_training_steps,
        "tokens": plan.tokens,
        # Of a mixture, those of each set by its name.
        "epochs": plan.epochs if len(plan.epochs) > 1 else next(iter(plan.epochs.values()), None),
        "memory": asdict(plan.memory) | {"peak": plan.memory.peak},
        "memory_table": {str(size): needs for size, needs in plan.table.items()},
        "largest_micro_batch": plan.largest,
        "fewest_gpus_with_fsdp": plan.fewest_ranks,
        "checkpoint_bytes": plan.config.checkpoint_bytes,
        "disk_bytes": plan.config.disk_bytes,
        "cost": plan.cost and asdict(plan.cost),
    }
