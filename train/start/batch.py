"""How a step's samples are cut into micro-steps, where settings leave that to the run."""

import math
from dataclasses import replace

from train.config import Config


def settle_batch(config: Config, num_ranks: int) -> Config:
    """The settings with micro-batch and micro-steps as numbers, on so many ranks.

    With `global_batch_tokens` a step has as few micro-steps as the micro-batch allows. Raises
    ValueError if the settings contradict each other, or if a step has fewer samples than ranks.
    """
    training, num_samples = config.training, config.samples_per_step(num_ranks)
    if training.global_batch_tokens is None:
        return _set_batch(config, training.micro_batch, training.micro_steps)
    if num_samples < num_ranks:
        raise ValueError(
            f"training.global_batch_tokens={training.global_batch_tokens:,} are {num_samples:,} "
            f"samples of data.max_seq_length={config.data.max_seq_length:,}, fewer than the "
            f"{num_ranks:,} ranks; expected at least {num_ranks * config.data.max_seq_length:,}"
        )
    micro_steps = math.ceil(num_samples / (training.micro_batch * num_ranks))
    if training.gradient_accumulation_steps not in ("auto", micro_steps):
        raise ValueError(
            f"training.global_batch_tokens={training.global_batch_tokens:,} on {num_ranks:,} ranks "
            f"takes {micro_steps:,} micro-steps of up to {training.micro_batch:,} samples, but "
            f"training.gradient_accumulation_steps is {training.gradient_accumulation_steps:,}; "
            "leave that at auto"
        )
    return _set_batch(config, math.ceil(num_samples / (micro_steps * num_ranks)), micro_steps)


def _set_batch(config: Config, micro_batch: int, micro_steps: int) -> Config:
    training = replace(
        config.training, batch_size_per_device=micro_batch, gradient_accumulation_steps=micro_steps
    )
    return replace(config, training=training)
