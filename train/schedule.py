"""The learning rate of a step: a pure function, so resuming needs no state.

Linear warmup, then cosine annealing with warm restarts (SGDR: Loshchilov and Hutter, ICLR 2017,
equation 5), each cycle `cycle_multiplier` times as long as the one before.
"""

import math

from train.config import TrainingConfig

# If the user sets no cycle length, this many cycles fill the run: with the defaults
# 14,000 + 28,000 + 56,000 steps after 2,000 of warmup.
NUM_DEFAULT_CYCLES = 3


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The learning rate of step number `step`, counted from 0.

    >>> config = TrainingConfig()
    >>> [round(learning_rate(step, config), 6) for step in (999, 1999, 2000, 15_999, 16_000)]
    [0.0003, 0.0006, 0.0006, 6e-05, 0.0006]
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    position, length = locate_in_cycle(step - config.warmup_steps, config)
    cosine = (1 + math.cos(math.pi * position / length)) / 2
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * cosine


def locate_in_cycle(step: int, config: TrainingConfig) -> tuple[int, int]:
    """How far into its cycle a step is, counted from the end of warmup, and the cycle's length."""
    length = config.cycle_steps or default_cycle_steps(config)
    while step >= length:
        step -= length
        length *= config.cycle_multiplier
    return step, length


def default_cycle_steps(config: TrainingConfig) -> int:
    """The length of the first cycle at which NUM_DEFAULT_CYCLES cycles fill the run."""
    parts: int = sum(config.cycle_multiplier**cycle for cycle in range(NUM_DEFAULT_CYCLES))
    return max(math.ceil((config.num_training_steps - config.warmup_steps) / parts), 1)
