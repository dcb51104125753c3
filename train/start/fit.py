"""What fits: the micro-batch and the kind of checkpointing, where the settings say auto.

By the estimate of train/start/memory.py; a GPU is then tried (train/start/trial.py).
"""

from train.config import Config
from train.start.batch import list_micro_batches, set_training, settle_batch
from train.start.memory import estimate_memory
from train.training_config import ActivationCheckpointing

# The kinds of checkpointing, by what they compute again: the least first.
KINDS: tuple[ActivationCheckpointing, ...] = ("none", "selective", "full")
# With fewer tokens in a micro-step a GPU loses more than checkpointing would cost.
ENOUGH_TOKENS = 2048
# With more tokens in a micro-step a CPU is no faster.
MOST_TOKENS = {"cpu": 8192}


def is_open(config: Config) -> bool:
    """Whether the settings leave the micro-batch or the kind of checkpointing to the run."""
    training = config.training
    return "auto" in (training.batch_size_per_device, training.activation_checkpointing)


def find_fitting(config: Config, device_type: str, num_ranks: int, num_bytes: int) -> Config | None:
    """The settings with what is auto chosen for so many bytes a rank; None if nothing fits.

    Of the kinds of checkpointing the first whose micro-batch keeps the device busy, and the largest
    micro-batch with it. Raises ValueError as `settle_batch` does.
    """
    best = None
    for kind in list_kinds(config):
        found = find_largest(set_kind(config, kind), device_type, num_ranks, num_bytes)
        if found and (best is None or found.training.micro_batch > best.training.micro_batch):
            best = found
        if best and best.training.micro_batch * config.data.max_seq_length >= ENOUGH_TOKENS:
            break
    return best


def find_largest(config: Config, device_type: str, num_ranks: int, num_bytes: int) -> Config | None:
    """The settings with the largest micro-batch that fits; None if none does.

    One that deals the samples evenly is preferred, as micro-batches of two sizes are compiled
    twice, unless another is twice as large.
    """
    settled = list_settled(config, num_ranks)
    if config.training.batch_size_per_device == "auto" and device_type in MOST_TOKENS:
        most = MOST_TOKENS[device_type] // config.data.max_seq_length
        settled = [s for s in settled if s.training.micro_batch <= most] or settled[-1:]
    fitting = [s for s in settled if estimate_memory(s, device_type, num_ranks).peak <= num_bytes]
    if not fitting:
        return None
    even = next((s for s in fitting if deals_evenly(s, num_ranks)), fitting[0])
    return even if 2 * even.training.micro_batch > fitting[0].training.micro_batch else fitting[0]


def list_candidates(asked: Config, chosen: Config, num_ranks: int, num_bytes: int) -> list[Config]:
    """What to try on a GPU with so many bytes: the chosen settings, and below those the next ones.

    As in `find_fitting`, a kind of checkpointing comes before the next one while its micro-batch
    keeps the GPU busy; then come the others, the largest micro-batch first.
    """
    kinds, below = list_kinds(asked), list[Config]()
    for kind in kinds[kinds.index(chosen.training.activation_checkpointing) :]:
        settled = list_settled(set_kind(asked, kind), num_ranks)
        largest = chosen
        if kind != chosen.training.activation_checkpointing:
            found = find_largest(set_kind(asked, kind), "cuda", num_ranks, num_bytes)
            largest = found or settled[-1]
        most = largest.training.micro_batch
        below += [s for s in settled if s.training.micro_batch <= most and s != chosen]

    def place(config: Config) -> tuple[bool, int]:
        size = config.training.micro_batch
        is_enough = size * config.data.max_seq_length >= ENOUGH_TOKENS
        return not is_enough, 0 if is_enough else -size

    # Those with the same place stay in their order.
    return [chosen, *sorted(below, key=place)]


def describe_choice(config: Config) -> str:
    """The micro-batch and the kind of checkpointing, in words."""
    training = config.training
    return (
        f"micro-batches of {training.micro_batch:,}, activation_checkpointing="
        f"{training.activation_checkpointing}"
    )


def find_least(config: Config, num_ranks: int) -> Config:
    """The settings with what is auto chosen to need the least memory."""
    return list_settled(set_kind(config, list_kinds(config)[-1]), num_ranks)[-1]


def list_settled(config: Config, num_ranks: int) -> list[Config]:
    """The settings with each micro-batch that they leave open, the largest first."""
    return [
        settle_batch(set_training(config, batch_size_per_device=size), num_ranks)
        for size in list_micro_batches(config, num_ranks)
    ]


def list_kinds(config: Config) -> tuple[ActivationCheckpointing, ...]:
    """The kinds of checkpointing that the settings leave open."""
    kind = config.training.activation_checkpointing
    return KINDS if kind == "auto" else (kind,)


def set_kind(config: Config, kind: ActivationCheckpointing) -> Config:
    """The settings with this kind of checkpointing."""
    return set_training(config, activation_checkpointing=kind)


def deals_evenly(config: Config, num_ranks: int) -> bool:
    """Whether all ranks have equally many samples in all micro-steps of all steps."""
    return all(
        num_samples
        == config.micro_steps_of(num_samples, num_ranks) * num_ranks * config.training.micro_batch
        for _, num_samples in config.list_batches(num_ranks)
    )


def keep_choice(config: Config, before: Config, num_ranks: int) -> Config:
    """The settings with what is auto as the run had it before, if it had these ranks and steps.

    Sums in another order would differ in their last bits.
    """
    if is_open(before) or not is_open(config):
        return config
    kept = config
    if config.training.batch_size_per_device == "auto":
        if config.samples_per_step(num_ranks) != before.samples_per_step(num_ranks):
            return config
        size = before.training.micro_batch
        kept = settle_batch(set_training(config, batch_size_per_device=size), num_ranks)
        if (kept.training.micro_batch, kept.training.micro_steps) != (
            before.training.micro_batch,
            before.training.micro_steps,
        ):
            return config
    if config.training.activation_checkpointing == "auto":
        kept = set_kind(kept, before.training.activation_checkpointing)
    return kept
