"""Which set is sample s of a run, and which of the set's own samples, also after a change midway.

A run's mixture is a list of stages; each starts at a sample and has the sets' shares from there on.
It is kept in every checkpoint. A set goes on in a stage where it was at the end of the one before,
so no change repeats or skips a sample of any set. A set that is left out has the share 0.

Sample j of a set is what sample j is to a run on that set alone (shards/order.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from shards.format import Int64
from shards.mixture.quotas import Quotas


@dataclass(frozen=True)
class Stage:
    """From sample `first_sample` on, a block of samples has so many of each set."""

    first_sample: int
    shares: tuple[int, ...]


@dataclass(frozen=True)
class Mixture:
    """The sets of a run by number, in the order in which they came in; the first stage starts at 0.

    What a stage's shares do not name has none.

    >>> mixture = ALONE.change(4, (1, 1))
    >>> mixture.locate(np.arange(8))
    (array([0, 0, 0, 0, 0, 1, 0, 1]), array([0, 1, 2, 3, 4, 0, 5, 1]))
    """

    stages: tuple[Stage, ...]

    @property
    def num_sets(self) -> int:
        """How many sets there were, those that were left out later too."""
        return max(len(stage.shares) for stage in self.stages)

    @property
    def shares(self) -> tuple[int, ...]:
        """What each set has of a block now."""
        return self.stages[-1].shares

    def change(self, sample: int, shares: Sequence[int]) -> "Mixture":
        """The mixture with these shares from `sample` on; new sets come after the others.

        A stage from which no sample was read is replaced.
        """
        kept = tuple(stage for stage in self.stages if stage.first_sample < sample)
        if kept and kept[-1].shares == tuple(shares):
            return replace(self, stages=kept)
        return replace(self, stages=(*kept, Stage(sample, tuple(shares))))

    def locate(self, samples: Int64) -> tuple[Int64, Int64]:
        """For each sample its set, and which of the set's own samples it is."""
        sets, numbers = np.empty(len(samples), np.int64), np.empty(len(samples), np.int64)
        firsts = [stage.first_sample for stage in self.stages]
        places = np.searchsorted(firsts, samples, side="right") - 1
        for place in np.unique(places).tolist():
            here = places == place
            found, ordinals = self._quotas[place].locate(samples[here] - firsts[place])
            sets[here], numbers[here] = found, self._before[place][found] + ordinals
        return sets, numbers

    def find(self, set_number: int, numbers: Int64) -> Int64:
        """The samples that are a set's own `numbers`; -1 for each that none is.

        The inverse of `locate`.
        """
        samples = np.full(len(numbers), -1, np.int64)
        firsts = self._before[:, set_number]
        places = np.searchsorted(firsts, numbers, side="right") - 1
        for place in np.unique(places).tolist():
            here, quotas = places == place, self._quotas[place]
            # Left out in the last stage: it was never read any further.
            if quotas.shares[set_number]:
                ordinals = numbers[here] - firsts[place]
                found = quotas.find(set_number, ordinals)
                samples[here] = self.stages[place].first_sample + found
        return samples

    def count(self, num_samples: int) -> Int64:
        """How many of the first `num_samples` samples each set has."""
        place = [stage.first_sample <= num_samples for stage in self.stages].count(True) - 1
        rest = num_samples - self.stages[place].first_sample
        counts: Int64 = self._before[place] + self._quotas[place].count(rest)
        return counts

    @cached_property
    def _quotas(self) -> list[Quotas]:
        """Those of each stage, over all sets: a set that is not in it yet has 0 of a block."""
        width = self.num_sets
        return [
            Quotas((*stage.shares, *[0] * (width - len(stage.shares)))) for stage in self.stages
        ]

    @cached_property
    def _before(self) -> Int64:
        """How many samples each set has had before each stage: (stages, sets)."""
        return np.stack([*self._sum_up()])

    def _sum_up(self) -> Iterator[Int64]:
        counts = np.zeros(self.num_sets, np.int64)
        ends = [stage.first_sample for stage in self.stages[1:]]
        for stage, quotas, end in zip(self.stages, self._quotas, [*ends, None], strict=True):
            yield counts
            if end is not None:
                counts = counts + quotas.count(end - stage.first_sample)


# That of a run on one set.
ALONE = Mixture((Stage(0, (1,)),))
