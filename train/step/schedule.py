"""The learning rate of a step: a pure function, so resuming needs no state.

Linear warmup, and then, by `training.schedule`, with N steps in the run:

    cosine_restarts    cosine annealing with warm restarts (SGDR: Loshchilov and Hutter, ICLR 2017,
                       equation 5), each cycle `cycle_multiplier` times as long as the one before
    cosine             one cosine that ends at step N
    linear_to_zero     a line that ends at step N (Bergsma et al., ICLR 2025, arXiv 2502.15938)
    wsd                the peak, then a line over the last `decay_fraction` of N (MiniCPM: Hu et al.
                       2024, arXiv 2404.06395)
    constant           the peak

What ends at step N is just above its lowest at the last step, N - 1, which is to learn as well.
Where the learning rate has not begun to fall for good, it does not depend on N: from there a run of
wsd or constant can be made longer, and is then the one that was as long from the beginning.
"""

import math

from train.training_config import TrainingConfig

# If the user sets no cycle length, this many cycles fill the run: with the defaults
# 14,000 + 28,000 + 56,000 steps after 2,000 of warmup.
NUM_DEFAULT_CYCLES = 3
# The share of the peak that cosine ends at where final_fraction is null, as in GPT-3's recipe.
COSINE_FINAL_FRACTION = 0.1


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The learning rate of step number `step`, counted from 0.

    >>> config = TrainingConfig()
    >>> [round(learning_rate(step, config), 6) for step in (999, 1999, 2000, 15_999, 16_000)]
    [0.0003, 0.0006, 0.0006, 6e-05, 0.0006]
    >>> config = TrainingConfig(schedule="wsd", warmup_steps=2, num_training_steps=10)
    >>> [f"{learning_rate(step, config):.0e}" for step in (0, 1, 2, 7, 8, 9)]
    ['3e-04', '6e-04', '6e-04', '6e-04', '6e-04', '3e-04']
    """
    peak = config.learning_rate
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.schedule == "cosine_restarts":
        position, length = locate_in_cycle(step - config.warmup_steps, config)
        lowest = config.min_learning_rate
        return lowest + (peak - lowest) * fall_as_cosine(position, length)
    start = config.decay_start
    length = config.num_training_steps - start
    position = min(step - start, length)
    if position <= 0:
        return peak
    is_cosine = config.schedule == "cosine"
    share = fall_as_cosine(position, length) if is_cosine else (length - position) / length
    lowest = peak * find_final_fraction(config)
    return lowest + (peak - lowest) * share


def find_final_fraction(config: TrainingConfig) -> float:
    """What the learning rate falls to at the end, as a share of the peak."""
    if config.schedule == "linear_to_zero":
        return 0.0
    if config.final_fraction is not None:
        return config.final_fraction
    return COSINE_FINAL_FRACTION if config.schedule == "cosine" else 0.0


def fall_as_cosine(position: int, length: int) -> float:
    """From 1 at position 0 to 0 at `length`, along half a cosine."""
    return (1 + math.cos(math.pi * position / length)) / 2


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


def describe_schedule(config: TrainingConfig) -> str:
    """The schedule in words.

    >>> describe_schedule(TrainingConfig(schedule="wsd", num_training_steps=10_000))
    'wsd: up to 6.00e-04 in 2,000 steps, there until step 8,000, down to 0.00e+00 at step 10,000'
    >>> describe_schedule(TrainingConfig(schedule="cosine", warmup_steps=0))
    'cosine: 6.00e-04, down to 6.00e-05 at step 100,000'
    """
    peak, start, end = config.learning_rate, config.decay_start, config.num_training_steps
    warmup = f" in {config.warmup_steps:,} steps" if config.warmup_steps else ""
    text = f"{config.schedule}: {'up to ' if warmup else ''}{peak:.2e}{warmup}"
    if config.schedule == "cosine_restarts":
        cycle = config.cycle_steps or default_cycle_steps(config)
        times = config.cycle_multiplier
        longer = f", each next one {times:,} times as long" if times > 1 else ""
        lowest = config.min_learning_rate
        return f"{text}, cycles down to {lowest:.2e}, the first of {cycle:,} steps{longer}"
    if start == end:
        return f"{text}, and there"
    stable = f", there until step {start:,}" if start > config.warmup_steps else ""
    lowest = peak * find_final_fraction(config)
    return f"{text}{stable}, down to {lowest:.2e} at step {end:,}"


def refuse_extension(before: TrainingConfig, now: TrainingConfig, step: int, name: str) -> None:
    """Raise ValueError if a run is made longer whose learning rate has begun to fall for good.

    `name` is the checkpoint that it would go on from, after `step` steps. The fall was meant for
    another end; with constant, and before wsd's decay, there is nothing to take back.
    cosine_restarts goes up again and again, and may be made longer anywhere.

    >>> before = TrainingConfig(schedule="wsd", num_training_steps=10_000)
    >>> now = TrainingConfig(schedule="wsd", num_training_steps=20_000)
    >>> refuse_extension(before, now, 8_000, "checkpoint-8000")
    """
    start, end = before.decay_start, before.num_training_steps
    if before.schedule == "cosine_restarts" or now.num_training_steps <= end or step <= start:
        return
    raise ValueError(
        f"{name}: its learning rate has fallen since step {start:,}, to end at "
        f"training.num_training_steps={end:,} (training.schedule={before.schedule}), now it is "
        f"{now.num_training_steps:,}; to make the run longer, name a checkpoint of at most "
        f"{start:,} steps with infrastructure.resume_from_checkpoint, and another "
        "infrastructure.output_dir"
    )


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
