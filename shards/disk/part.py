"""A part of numbered things: every n-th from i, written `i/n` on a command line."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Every `count`-th of things numbered from 0, beginning with `number`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def choose(self, total: int) -> range:
        """Its numbers below `total`.

        >>> list(Part(1, 3).choose(8))
        [1, 4, 7]
        """
        return range(self.number, total, self.count)


def parse_part(text: str) -> Part:
    """A part from its command-line form; ValueError if it is not one.

    >>> parse_part("3/8")
    Part(number=3, count=8)
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    part = Part(int(match[1]), int(match[2])) if match else None
    if part is None or part.number >= part.count:
        raise ValueError(
            f"--part is {text:.60}; expected i/n with i from 0 to n - 1, such as 0/4, 1/4, 2/4, 3/4"
        )
    return part
