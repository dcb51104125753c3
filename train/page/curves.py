"""Metrics over steps as arrays, thinned so that one spike among millions stays visible."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Buckets of a drawing, each with its first, lowest, highest and last entry; more than a drawing has
# pixels across.
BUCKETS = 400


@dataclass(frozen=True)
class Curve:
    """The values of a metric at ascending steps, as many as there are steps; at least one."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def thin(self, buckets: int = BUCKETS) -> "Curve":
        """At most 4 x `buckets` of the entries: those between which the others lie."""
        if len(self.steps) <= 4 * buckets:
            return self
        edges = np.linspace(self.steps[0], self.steps[-1] + 1, buckets + 1)
        cuts = np.searchsorted(self.steps, edges)
        kept = set[int]()
        for first, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            if first < stop:
                part = self.values[first:stop]
                kept |= {first, first + int(part.argmin()), first + int(part.argmax()), stop - 1}
        places = sorted(kept)
        return Curve(self.steps[places], self.values[places])

    def sample(self, count: int) -> "Curve":
        """At most `count` of the entries, evenly chosen, the first and the last among them."""
        places = np.unique(np.linspace(0, len(self.steps) - 1, count).round().astype(np.int64))
        return Curve(self.steps[places], self.values[places])

    def describe(self) -> str:
        """The curve in words: where it begins and ends, and its extremes.

        >>> Curve(np.array([1, 2, 3]), np.array([5.0, 7.5, 4.0])).describe()
        'from 5 at step 1 to 4 at step 3; highest 7.5 at step 2, lowest 4 at step 3'
        """
        low, high = int(self.values.argmin()), int(self.values.argmax())
        start, end, highest, lowest = (
            f"{show_number(self.values[place])} at step {self.steps[place]:,}"
            for place in (0, -1, high, low)
        )
        if len(self.steps) == 1:
            return start
        return f"from {start} to {end}; highest {highest}, lowest {lowest}"


def make_curve(points: Iterable[tuple[int, float]]) -> Curve:
    """The curve through these points; of two for one step the later one counts."""
    by_step = dict(points)
    steps = np.array(sorted(by_step), np.int64)
    return Curve(steps, np.array([by_step[step] for step in steps.tolist()], np.float64))


def show_number(value: float) -> str:
    """A number in four digits, as people read it.

    >>> show_number(12345.6), show_number(5.84321), show_number(6e-4), show_number(0.0)
    ('12,346', '5.843', '0.0006', '0')
    """
    if abs(value) >= 1e9 or 0 < abs(value) < 1e-4:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
