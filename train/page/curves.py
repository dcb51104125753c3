"""Metrics over steps as arrays, thinned so that one spike among millions stays visible."""

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shards.screen.lines import format_number

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

    def cut(self, last: int) -> "Curve":
        """The entries until the step `last`; there may be none."""
        count = int(np.searchsorted(self.steps, last, side="right"))
        return Curve(self.steps[:count], self.values[:count])

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
            f"{format_number(self.values[place])} at step {self.steps[place]:,}"
            for place in (0, -1, high, low)
        )
        if len(self.steps) == 1:
            return start
        return f"from {start} to {end}; highest {highest}, lowest {lowest}"


@dataclass(frozen=True)
class Points:
    """The entries of a metric as they are read, 16 bytes each, in any order."""

    steps: "array[int]" = field(default_factory=lambda: array("q"))
    values: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, step: int, value: float) -> None:
        """Add an entry."""
        self.steps.append(step)
        self.values.append(value)

    def to_curve(self) -> Curve:
        """The curve through them; of two for one step the later one counts."""
        backwards = np.frombuffer(self.steps, np.int64)[::-1]
        steps, places = np.unique(backwards, return_index=True)
        return Curve(steps, np.frombuffer(self.values)[::-1][places])
