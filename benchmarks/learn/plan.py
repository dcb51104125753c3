"""Which trials come next, from the losses of those that are done: a pure function.

1. Every arm is tuned with the first seed: a grid of learning rates, the same for all, that widens
   by doubling until each arm's best is inside it. So all arms have equally many trials.
2. Every arm at its best rate, and the baseline as shipped, with the other seeds.
3. The best recipe of ours with its whole schedule shortened, until it falls short of the target.

A loss that is not finite is math.inf here: it loses to all others.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.learn.forms import BASELINE, SHIPPED_RATE, Form
from train.tuning.grid import widen

# A shorter run than the shortest has this share of its steps; and the shortest share there is.
SHORTER = 0.7
SHORTEST = 0.02


@dataclass(frozen=True, order=True)
class Trial:
    """One run from scratch to the end of its schedule."""

    arm: str
    rate: float
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Its name among files.

        >>> Trial("muon", 2.4e-3, 0, 400).name
        'muon-0.0024-seed0-steps400'
        """
        return f"{self.arm}-{self.rate:g}-seed{self.seed}-steps{self.steps}"


Losses = Mapping[Trial, float]


def list_next(form: Form, losses: Losses) -> list[Trial]:
    """The trials that can be run now, of which none is done; empty at the end."""
    for wanted in stages(form, losses):
        if missing := [trial for trial in wanted if trial not in losses]:
            return missing
    return []


def stages(form: Form, losses: Losses) -> Iterator[list[Trial]]:
    """The trials of one stage after another; each needs the losses of those before it."""
    rates = form.rates
    yield tune(form, rates)
    while (wider := widen(rates, find_best_rates(form, rates, losses))) != rates:
        rates = wider
        yield tune(form, rates)
    yield repeat(form, losses)
    shares = form.shares
    yield shorten(form, shares, losses)
    while (more := add_shorter(form, shares, losses)) != shares:
        shares = more
        yield shorten(form, shares, losses)


def tune(form: Form, rates: Sequence[float]) -> list[Trial]:
    """Every arm at every rate, with the first seed."""
    return [Trial(arm, rate, 0, form.count_steps()) for rate in rates for arm in form.arms]


def find_best_rates(form: Form, rates: Sequence[float], losses: Losses) -> set[float]:
    """The best rate of each arm."""
    return {find_best_rate(form, arm, rates, losses) for arm in form.arms}


def find_best_rate(form: Form, arm: str, rates: Sequence[float], losses: Losses) -> float:
    """The rate at which an arm's loss was lowest; of equal ones the smallest."""
    return min(rates, key=lambda rate: (losses[Trial(arm, rate, 0, form.count_steps())], rate))


def list_rates(form: Form, losses: Losses) -> list[float]:
    """The rates that every arm was tuned with."""
    rates = form.rates
    while (wider := widen(rates, find_best_rates(form, rates, losses))) != rates:
        rates = wider
    return list(rates)


def choose_rate(form: Form, arm: str, losses: Losses) -> float:
    """The best rate of an arm, of all that were tried."""
    return find_best_rate(form, arm, list_rates(form, losses), losses)


def repeat(form: Form, losses: Losses) -> list[Trial]:
    """Every arm at its best rate with every seed, and the baseline as shipped."""
    trials = [trial for arm in form.arms for trial in list_seeds(form, arm, losses)]
    return trials + (list_shipped(form) if BASELINE in form.arms else [])


def list_seeds(form: Form, arm: str, losses: Losses, share: float = 1.0) -> list[Trial]:
    """The trials of an arm at its best rate, one for each seed."""
    rate = choose_rate(form, arm, losses)
    return [Trial(arm, rate, seed, form.count_steps(share)) for seed in range(form.num_seeds)]


def list_shipped(form: Form) -> list[Trial]:
    """The baseline at nanoGPT's own rate."""
    steps = form.count_steps()
    return [Trial(BASELINE, SHIPPED_RATE, seed, steps) for seed in range(form.num_seeds)]


def choose_ours(form: Form, losses: Losses) -> str:
    """The arm of ours with the lowest mean loss."""
    ours = [arm for arm in form.arms if arm != BASELINE]
    return min(ours, key=lambda arm: mean_loss(list_seeds(form, arm, losses), losses))


def mean_loss(trials: Sequence[Trial], losses: Losses) -> float:
    """The mean of the trials' losses."""
    return statistics.fmean(losses[trial] for trial in trials)


def find_target(form: Form, losses: Losses) -> float:
    """The loss to reach: the form's, or the mean of the tuned baseline's."""
    return form.target or mean_loss(list_seeds(form, BASELINE, losses), losses)


def shorten(form: Form, shares: Sequence[float], losses: Losses) -> list[Trial]:
    """The best of ours in each share of the tokens, with every seed."""
    ours = choose_ours(form, losses)
    return [trial for share in shares for trial in list_seeds(form, ours, losses, share)]


def add_shorter(form: Form, shares: tuple[float, ...], losses: Losses) -> tuple[float, ...]:
    """The shares, with a shorter one as long as a seed still reaches the target in the shortest."""
    shortest, target = min(shares), find_target(form, losses)
    reach = [losses[trial] <= target for trial in shorten(form, [shortest], losses)]
    shorter = round(shortest * SHORTER, 3)
    return (shorter, *shares) if any(reach) and shorter >= SHORTEST else shares


def list_shares(form: Form, losses: Losses) -> list[float]:
    """All shares that ours was run in, with the whole at the end."""
    shares = form.shares
    while (more := add_shorter(form, shares, losses)) != shares:
        shares = more
    return [*shares, 1.0]


def count_to_reach(target: float, points: Sequence[tuple[int, float]]) -> float | None:
    """The steps after which a loss is reached, between runs of these steps and losses.

    A line is drawn through the loss over the logarithm of the steps. None = no run reaches it;
    where the shortest does, its steps: no fewer were tried.

    >>> round(count_to_reach(3.0, [(100, 4.0), (400, 2.0)]))
    200
    >>> count_to_reach(3.0, [(100, 2.9), (400, 2.0)]), count_to_reach(1.0, [(100, 2.0)])
    (100.0, None)
    """
    runs = sorted(points)
    reaching = [number for number, (_, loss) in enumerate(runs) if loss <= target]
    if not reaching:
        return None
    first = reaching[0]
    steps, loss = runs[first]
    if first == 0 or math.isinf(runs[first - 1][1]):
        return float(steps)
    before, higher = runs[first - 1]
    way = (higher - target) / (higher - loss)
    return float(before * (steps / before) ** way)
