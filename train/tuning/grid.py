"""The learning rates that are tried: doublings, more of them until the best is inside."""

from collections.abc import Collection

# However far from the best it began, the grid ends here.
MAX_RATES = 12


def widen(rates: tuple[float, ...], best: Collection[float]) -> tuple[float, ...]:
    """The rates, ascending, with one more at each end that is the best of something.

    >>> widen((1e-3, 2e-3), {2e-3}), widen((1e-3, 2e-3, 4e-3), {2e-3})
    ((0.001, 0.002, 0.004), (0.001, 0.002, 0.004))
    """
    if len(rates) >= MAX_RATES:
        return rates
    above = (2 * rates[-1],) if rates[-1] in best else ()
    below = (rates[0] / 2,) if rates[0] in best else ()
    return (*below, *rates, *above)
