"""How a step's samples are cut into micro-steps, where settings leave that to the run."""

import math
from dataclasses import replace
from typing import Any

from train.config import Config


def settle_batch(config: Config, num_ranks: int) -> Config:
    """The settings with micro-batch and micro-steps as numbers, on so many ranks.

    With `global_batch_tokens` a step has as few micro-steps as the micro-batch allows. Raises
    ValueError if the settings contradict each other, or if a step has fewer samples than ranks.
    """
    training = config.training
    if training.global_batch_tokens is None:
        return set_training(config, gradient_accumulation_steps=training.micro_steps)
    num_samples = count_samples(config, num_ranks)
    micro_steps = math.ceil(num_samples / (training.micro_batch * num_ranks))
    if training.gradient_accumulation_steps not in ("auto", micro_steps):
        raise ValueError(
            f"training.global_batch_tokens={training.global_batch_tokens:,} on {num_ranks:,} ranks "
            f"takes {micro_steps:,} micro-steps of up to {training.micro_batch:,} samples, but "
            f"training.gradient_accumulation_steps is {training.gradient_accumulation_steps:,}; "
            "leave that at auto"
        )
    micro_batch = math.ceil(num_samples / (micro_steps * num_ranks))
    return set_training(
        config, batch_size_per_device=micro_batch, gradient_accumulation_steps=micro_steps
    )


def list_micro_batches(config: Config, num_ranks: int) -> list[int]:
    """The micro-batches that the settings leave open, the largest first.

    Those that some number of micro-steps makes of a step's samples. Raises ValueError as
    `settle_batch` does.
    """
    training = config.training
    if training.batch_size_per_device != "auto":
        return [training.batch_size_per_device]
    num_samples = count_samples(config, num_ranks)
    if training.gradient_accumulation_steps != "auto":
        return [math.ceil(num_samples / (training.gradient_accumulation_steps * num_ranks))]
    sizes = [math.ceil(num_samples / num_ranks)]
    while sizes[-1] > 1:
        # The fewest micro-steps with which it is smaller.
        micro_steps = math.ceil(num_samples / ((sizes[-1] - 1) * num_ranks))
        sizes.append(math.ceil(num_samples / (micro_steps * num_ranks)))
    return sizes


def count_samples(config: Config, num_ranks: int) -> int:
    """Samples a step; ValueError if they are fewer than the ranks."""
    num_samples, length = config.samples_per_step(num_ranks), config.data.max_seq_length
    if num_samples < num_ranks:
        raise ValueError(
            f"training.global_batch_tokens={config.training.global_batch_tokens:,} are "
            f"{num_samples:,} samples of data.max_seq_length={length:,}, fewer than the "
            f"{num_ranks:,} ranks; expected at least {num_ranks * length:,}"
        )
    return num_samples


def needs_fit(config: Config) -> bool:
    """Whether the micro-batch is left to the run."""
    return config.training.batch_size_per_device == "auto"


def set_training(config: Config, **changes: Any) -> Config:
    """The settings with others in section `training`."""
    return replace(config, training=replace(config.training, **changes))
