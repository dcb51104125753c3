"""A run computed before it starts: what fits on which GPUs, how long it takes, what it costs.

Arithmetic on the settings alone: memory from train/start/memory.py, speed from a stated share of
the GPUs' peak (MFU), in the convention of model/config.py: flops_per_token.
"""

import bisect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from train.config import MAX_STEP_TOKENS, Config
from train.gpus import Gpu
from train.start.batch import set_training
from train.start.fit import KINDS, find_fitting, find_least
from train.start.memory import Memory, estimate_memory
from train.training_config import ActivationCheckpointing

if TYPE_CHECKING:
    from shards.mixture.sets import MixedOrder  # Which loads pyarrow.

# No larger ones are looked for; of a small model more may fit.
MAX_MICRO_BATCH = 2**12
# More make the parts smaller, but not what is gathered.
MAX_RANKS = 1024


@dataclass(frozen=True)
class Machines:
    """What a run is planned for."""

    num_gpus: int
    # Bytes of memory of each.
    num_bytes: int
    # None if only its memory was given.
    gpu: Gpu | None = None


@dataclass(frozen=True)
class Wishes:
    """What the settings do not say."""

    # The share of the GPUs' peak that the model's FLOPs will reach.
    mfu: float
    # Of a GPU for an hour, in any currency; None if it is not known.
    price: float | None
    # That of the sets that are read; None for a plan without any.
    order: "MixedOrder | None"


@dataclass(frozen=True)
class Cost:
    """Time and money for the whole run."""

    # The share of the peak that they are computed with.
    mfu: float
    tokens_per_second: float
    days: float
    gpu_hours: float
    # In the currency of the price; None if that was not given.
    money: float | None


@dataclass(frozen=True)
class Plan:
    """What comes out."""

    # Micro-batch and checkpointing as a run would choose them; if none fits, with the least memory.
    config: Config
    machines: Machines
    memory: Memory
    # Bytes that a rank needs, by micro-batch and kind of checkpointing.
    table: dict[int, dict[ActivationCheckpointing, int]]
    # The largest micro-batch that fits with each kind; 0 if none does.
    largest: dict[ActivationCheckpointing, int]
    # The fewest ranks on which the model fits by fsdp; None = on no number of them.
    fewest_ranks: int | None
    tokens: int
    # How often each set's tokens are seen, by its name; nothing where there is none.
    epochs: dict[str, float]
    # None if the peak of the GPUs is not known.
    cost: Cost | None

    @property
    def fits(self) -> bool:
        """Whether a rank has the memory."""
        return self.memory.peak <= self.machines.num_bytes


def make_plan(config: Config, machines: Machines, wishes: Wishes) -> Plan:
    """The plan of a run with these settings; ValueError if they contradict each other."""
    num_gpus, num_bytes = machines.num_gpus, machines.num_bytes
    chosen = find_fitting(config, "cuda", num_gpus, num_bytes) or find_least(config, num_gpus)
    samples = chosen.samples_per_step(num_gpus)
    tokens = config.count_tokens(num_gpus)
    largest = {kind: largest_micro_batch(chosen, kind, num_gpus, num_bytes) for kind in KINDS}
    share = min(-(-samples // num_gpus), most_samples(config))
    sizes = list_sizes(chosen.training.micro_batch, max(largest.values()), share)
    return Plan(
        config=chosen,
        machines=machines,
        memory=estimate_memory(chosen, "cuda", num_gpus),
        table={
            size: {kind: need(chosen, kind, size, num_gpus) for kind in KINDS} for size in sizes
        },
        largest=largest,
        fewest_ranks=find_fewest_ranks(config, num_bytes),
        tokens=tokens,
        epochs=wishes.order.plan_epochs(tokens) if wishes.order else {},
        cost=estimate_cost(chosen, machines, wishes, tokens),
    )


def need(config: Config, kind: ActivationCheckpointing, micro_batch: int, num_ranks: int) -> int:
    """Bytes that a rank needs with this kind of checkpointing and micro-batch."""
    changed = set_training(
        config,
        activation_checkpointing=kind,
        batch_size_per_device=micro_batch,
        gradient_accumulation_steps=1,
    )
    return estimate_memory(changed, "cuda", num_ranks).peak


def most_samples(config: Config) -> int:
    """The largest micro-batch that is looked at: a step's tokens have a limit as well."""
    return min(MAX_MICRO_BATCH, MAX_STEP_TOKENS // config.data.max_seq_length)


def largest_micro_batch(
    config: Config, kind: ActivationCheckpointing, num_ranks: int, num_bytes: int
) -> int:
    """The largest micro-batch that fits; 0 if none does."""
    sizes = range(1, most_samples(config) + 1)
    return bisect.bisect_right(sizes, num_bytes, key=lambda b: need(config, kind, b, num_ranks))


def list_sizes(chosen: int, largest: int, share: int) -> list[int]:
    """Micro-batches worth a line: powers of two up to what fits or a rank has, and the chosen one.

    >>> list_sizes(6, 21, 64), list_sizes(2, 500, 4)
    ([1, 2, 4, 6, 8, 16, 32], [1, 2, 4])
    """
    powers = [1]
    while powers[-1] < min(largest, share):
        powers.append(2 * powers[-1])
    return sorted({*powers, chosen})


def find_fewest_ranks(config: Config, num_bytes: int) -> int | None:
    """The fewest ranks on which the model fits if it is sharded; None if it never does, or may not.

    An adapter's model is whole on every rank.
    """
    if config.training.adapter is not None:
        return None
    sharded = replace(config, distributed=replace(config.distributed, strategy="fsdp"))
    for num_ranks in range(1, MAX_RANKS + 1):
        if need(sharded, "full", 1, num_ranks) <= num_bytes:
            return num_ranks
    return None


def estimate_cost(config: Config, machines: Machines, wishes: Wishes, tokens: int) -> Cost | None:
    """Time and money at the stated MFU; None if the GPUs' peak is unknown.

    Raises ValueError for a precision that they do not have.
    """
    if machines.gpu is None:
        return None
    precision = config.training.precision
    tflops = machines.gpu.tflops.get(precision)
    if tflops is None:
        raise ValueError(
            f"the {machines.gpu.short} does not compute in {precision}; set training.precision to "
            f"one of {', '.join(machines.gpu.tflops)}"
        )
    flops = wishes.mfu * tflops * 1e12 * machines.num_gpus
    rate = flops / config.model.flops_per_token(config.data.max_seq_length)
    hours = tokens / rate / 3600
    gpu_hours = hours * machines.num_gpus
    money = None if wishes.price is None else wishes.price * gpu_hours
    return Cost(wishes.mfu, rate, hours / 24, gpu_hours, money)
