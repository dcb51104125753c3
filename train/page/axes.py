"""The scale of a drawing: where a value lies between 0 and 1, and which values are marked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.page.curves import Curve


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with marks at round values."""

    low: float
    high: float
    marks: list[float]
    is_log: bool = False

    def place(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where the values lie, 0 at the low end and 1 at the high one."""
        if self.is_log:
            low, high = math.log(self.low), math.log(self.high)
            return (np.log(np.maximum(values, self.low)) - low) / (high - low)
        return (values - self.low) / (self.high - self.low)


def make_step_axis(curves: Sequence[Curve]) -> Axis:
    """The axis of the steps, from 0."""
    last = max(float(curve.steps[-1]) for curve in curves)
    return Axis(0.0, max(last, 1.0), find_marks(0.0, max(last, 1.0), 5))


def make_value_axis(curves: Sequence[Curve], is_log: bool) -> Axis:
    """The axis of the values; a logarithmic one only where they differ by much and are positive."""
    low = min(float(curve.values.min()) for curve in curves)
    high = max(float(curve.values.max()) for curve in curves)
    if is_log and low > 0 and high / low > 8:
        low, high = low / 1.1, high * 1.1
        return Axis(low, high, find_log_marks(low, high), is_log=True)
    if low == high:
        high += abs(high) or 1.0
    # At least a hundredth of the values is shown, or marks in four digits would be the same.
    space = max((high - low) * 0.06, 0.005 * max(abs(low), abs(high)) - (high - low) / 2)
    low, high = (0.0 if 0 <= low <= space else low - space), high + space
    return Axis(low, high, find_marks(low, high, 5))


def find_marks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values between `low` and `high`.

    >>> find_marks(0, 500, 5)
    [0.0, 100.0, 200.0, 300.0, 400.0, 500.0]
    """
    size = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(size * n for n in (1, 2, 5, 10) if (high - low) / (size * n) <= count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def find_log_marks(low: float, high: float) -> list[float]:
    """Round values between `low` and `high`, which lie more than 8 times apart, about six.

    >>> find_log_marks(0.7, 8), find_log_marks(0.05, 2e5)
    ([1.0, 2.0, 5.0], [0.1, 10.0, 1000.0, 100000.0])
    """
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    if last - first < 2:
        powers = range(first - 1, last + 1)
        marks = (digit * 10.0**power for power in powers for digit in (1, 2, 5))
        return [mark for mark in marks if low <= mark <= high]
    return [10.0**power for power in range(first, last + 1, math.ceil((last - first + 1) / 6))]
