"""What all trials come to: losses with their intervals, and how few tokens reach the baseline's."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.learn.forms import ARMS, BASELINE, SHIPPED_RATE, Form
from benchmarks.learn.plan import (
    Losses,
    Trial,
    choose_ours,
    count_to_reach,
    find_target,
    list_rates,
    list_seeds,
    list_shares,
    list_shipped,
    mean_loss,
)
from benchmarks.measure import Json

# Student's t at 97.5 %, by the number of values less one.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
# What is kept of each trial.
KEPT = ("loss", "last_training_loss", "skipped_steps", "cpu_seconds", "seconds")


def read_losses(results: Mapping[Trial, Json]) -> Losses:
    """The losses as the plan takes them: what is not finite is infinite."""
    losses = {trial: result["loss"] for trial, result in results.items()}
    return {trial: math.inf if loss is None else loss for trial, loss in losses.items()}


def summarize(form: Form, results: Mapping[Trial, Json]) -> Json:
    """All trials, the arms at their best rates, and the tokens that ours needs."""
    losses = read_losses(results)
    summary: Json = {
        "work": describe_work(form, results),
        "arms": [
            {"arm": arm, "title": ARMS[arm].title, "rates": list_rates(form, losses)}
            | describe(list_seeds(form, arm, losses), results)
            for arm in form.arms
        ],
    }
    if BASELINE in form.arms:
        summary["shipped"] = {"rate": SHIPPED_RATE} | describe(list_shipped(form), results)
    return summary | {
        "shortened": list(describe_shortened(form, results, losses)),
        "factors": describe_factors(form, losses),
        "trials": [
            {"arm": trial.arm, "rate": trial.rate, "seed": trial.seed, "steps": trial.steps}
            | {name: results[trial][name] for name in KEPT}
            for trial in sorted(results)
        ],
    }


def describe_work(form: Form, results: Mapping[Trial, Json]) -> Json:
    """The size of what was compared."""
    sizes = {result["shape"]: result for result in results.values()}
    [sets] = {tuple(sorted(result["sets"].items())) for result in results.values()}
    return {
        "tokens": form.count_steps() * form.tokens_per_step,
        "steps": form.count_steps(),
        "trials": len(results),
        "cpu_seconds": round(sum(result["cpu_seconds"] for result in results.values())),
        "held_out_tokens": form.held_out_windows * form.max_seq_length,
        "parameters": {shape: result["parameters"] for shape, result in sizes.items()},
        "block_parameters": {shape: result["block_parameters"] for shape, result in sizes.items()},
        "sets": dict(sets),
    }


def describe(trials: Sequence[Trial], results: Mapping[Trial, Json]) -> Json:
    """The trials of one rate, one for each seed: their losses, and what they took."""
    losses = [results[trial]["loss"] for trial in trials]
    return {
        "rate": trials[0].rate,
        "losses": losses,
        "mean": None if None in losses else statistics.fmean(losses),
        "interval": None if None in losses else find_interval(losses),
        "cpu_seconds": round(
            statistics.fmean(results[trial]["cpu_seconds"] for trial in trials), 1
        ),
    }


def find_interval(values: Sequence[float]) -> list[float] | None:
    """The 95 % interval of the mean by Student's t; None for a single value.

    >>> [round(end, 2) for end in find_interval([1.0, 2.0, 3.0])]
    [-0.48, 4.48]
    """
    if len(values) < 2:
        return None
    t = STUDENT[min(len(values) - 1, len(STUDENT)) - 1]
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return [statistics.fmean(values) - half, statistics.fmean(values) + half]


def describe_shortened(form: Form, results: Mapping[Trial, Json], losses: Losses) -> Iterator[Json]:
    """Ours in each share of the tokens, from the shortest to the whole."""
    ours = choose_ours(form, losses)
    for share in list_shares(form, losses):
        trials = list_seeds(form, ours, losses, share)
        yield {"arm": ours, "share": share, "steps": trials[0].steps} | describe(trials, results)


def describe_factors(form: Form, losses: Losses) -> Json:
    """By how much fewer tokens ours takes to each loss that is to be reached."""
    targets = {"target": find_target(form, losses)}
    if BASELINE in form.arms:
        targets = {
            "tuned": mean_loss(list_seeds(form, BASELINE, losses), losses),
            "shipped": mean_loss(list_shipped(form), losses),
        }
    return {name: find_factor(form, target, losses) for name, target in targets.items()}


def find_factor(form: Form, target: float, losses: Losses) -> Json:
    """The factor of each seed, and whether some seed reached the loss in the shortest of its runs.

    Then that seed's factor is at least so much. None = a seed never reaches it.
    """
    ours = choose_ours(form, losses)
    shares = list_shares(form, losses)
    whole = form.count_steps()
    factors: list[float | None] = []
    for seed in range(form.num_seeds):
        trials = [list_seeds(form, ours, losses, share)[seed] for share in shares]
        reached = count_to_reach(target, [(trial.steps, losses[trial]) for trial in trials])
        factors.append(None if reached is None else whole / reached)
    known = [factor for factor in factors if factor is not None]
    is_whole = len(known) == len(factors) and math.isfinite(target)
    return {
        "loss": target if math.isfinite(target) else None,
        "by_seed": factors,
        "mean": statistics.fmean(known) if is_whole else None,
        "is_at_least": any(factor >= whole / form.count_steps(min(shares)) for factor in known),
    }
