"""A tuning in words: its table, the setting to take over, and what a short run can tell."""

import math
from collections.abc import Iterator

from shards.screen.lines import align, format_plural, format_time
from train.config import Config
from train.tuning.record import Record
from train.tuning.trials import Trial, set_rate


def describe_trial(trial: Trial) -> str:
    """How a trial ended.

    >>> describe_trial(Trial(1e-3, 5.25, 2, 61.0)), describe_trial(Trial(1.0, None, 9, 1.0))
    ('  validation loss 5.2500, 2 steps skipped', '  diverged, 9 steps skipped')
    """
    end = "diverged" if trial.loss is None else f"validation loss {trial.loss:.4f}"
    skipped = f", {format_plural(trial.skipped_steps, 'step')} skipped"
    return f"  {end}{skipped if trial.skipped_steps else ''}"


def describe_tuning(record: Record, config: Config, best: float, is_inside: bool) -> Iterator[str]:
    """The table, and the line for the settings."""
    trials = [record.trials[rate] for rate in sorted(record.trials)]
    losses = [trial.loss for trial in trials if trial.loss is not None]
    lowest = min(losses, default=math.inf)
    rows = [(record.asked["parameter"], "validation loss", "above the best", "time")]
    for trial in trials:
        told = ("diverged", "") if trial.loss is None else (f"{trial.loss:.4f}", "best")
        if trial.loss is not None and trial.rate != best:
            told = told[0], f"{trial.loss - lowest:+.4f}"
        rows.append((f"{trial.rate:g}", *told, format_time(trial.seconds)))
    yield from align(rows)
    if not losses:
        raise ValueError(
            "every run diverged, so no rate can be named; look at the runs' logs, and give smaller "
            "--rates"
        )
    yield ""
    if not is_inside:
        yield (
            f"the best is the last of {len(trials)} rates, so a better one may lie beyond it; "
            "give other --rates"
        )
    yield "for the command line:"
    own = set_rate(config, record.asked["parameter"], best)
    yield "  " + " ".join(f"{name}={value:g}" for name, value in own.items())
    yield from describe_limits(record, config)


def describe_limits(record: Record, config: Config) -> Iterator[str]:
    """What the number is worth."""
    steps, whole = record.asked["steps"], config.training.num_training_steps
    yield ""
    yield "one seed each: with others, losses that are close may change places (docs/learning.md)"
    if steps < whole:
        yield (
            f"the best of {steps:,} steps is seldom too low for {whole:,}, and often too high: "
            "of two equal ones take the smaller, and see it over more --steps"
        )
