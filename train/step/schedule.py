"""The learning rate of a step: a pure function, so resuming needs no state.

Linear warmup, then cosine annealing with warm restarts (SGDR: Loshchilov and Hutter, ICLR 2017,
equation 5), each cycle `cycle_multiplier` times as long as the one before.
"""

import math

from train.training_config import TrainingConfig

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
    if config.cycle_multiplier == 1:
        return step % length, length
    while step >= length:
        step -= length
        length *= config.cycle_multiplier
    return step, length


def default_cycle_steps(config: TrainingConfig) -> int:
    """The length of the first cycle at which NUM_DEFAULT_CYCLES cycles fill the run."""
    parts: int = sum(config.cycle_multiplier**cycle for cycle in range(NUM_DEFAULT_CYCLES))
    return max(math.ceil((config.num_training_steps - config.warmup_steps) / parts), 1)


def describe_change(before: TrainingConfig, now: TrainingConfig, step: int) -> str | None:
    """What other settings change about the learning rate from `step` steps on; None if nothing.

    >>> describe_change(TrainingConfig(), TrainingConfig(num_training_steps=50_000), 40_000)
    'the learning rate follows the new schedule: step 40,001 has 2.19e-04 (had 8.67e-05), \
the last one 6.00e-05'
    """
    last = now.num_training_steps - 1
    if step > last:
        return None
    # Steps on which the schedules of the same run would differ if they differ at all.
    steps = {step + (last - step) * part // 1000 for part in range(1001)}
    if all(learning_rate(s, before) == learning_rate(s, now) for s in steps):
        return None
    return (
        f"the learning rate follows the new schedule: step {step + 1:,} has "
        f"{learning_rate(step, now):.2e} (had {learning_rate(step, before):.2e}), the last one "
        f"{learning_rate(last, now):.2e}"
    )
