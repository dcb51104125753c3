"""Where a rank is: what it is doing, since when, and at which line of the code."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import main_thread

ROOT = Path(__file__).parents[2]


@dataclass
class Place:
    """What the main thread is doing; written by it alone, read by the one that watches."""

    what: str = "the start"
    # Whether this may take long, such as the start; None = there is no limit to it.
    is_long: bool | None = True
    # Counts up with everything that gets done.
    moves: int = 0

    def enter(self, what: str, is_long: bool | None = False) -> None:
        """Begin something else."""
        self.what, self.is_long = what, is_long
        self.moves += 1

    def move(self) -> None:
        """Say that something got done."""
        self.moves += 1


def find_line() -> str:
    """The line of ours that the main thread is in, such as `train/batches.py:72 (next_step)`."""
    number = main_thread().ident
    frame = sys._current_frames().get(number) if number is not None else None
    while frame:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and "site-packages" not in path.parts[len(ROOT.parts) :]:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return "no line of this program"


def describe_places(places: Sequence[str | None]) -> str:
    """Which ranks are where; None = a rank that did not say.

    >>> describe_places(["step 7 at a.py:1 (f)"] * 3 + [None])
    'ranks 0-2 in step 7 at a.py:1 (f); rank 3 does not answer'
    """
    ranks: dict[str | None, list[int]] = {}
    for rank, place in enumerate(places):
        ranks.setdefault(place, []).append(rank)
    return "; ".join(
        f"{name_ranks(own)} in {place}"
        if place
        else f"{name_ranks(own)} {'does' if len(own) == 1 else 'do'} not answer"
        for place, own in sorted(ranks.items(), key=lambda item: (-len(item[1]), item[1]))
    )


def name_ranks(ranks: Sequence[int]) -> str:
    """Ranks in ascending order, in few words.

    >>> name_ranks([0, 1, 2, 5])
    'ranks 0-2, 5'
    >>> name_ranks([3])
    'rank 3'
    """
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in spans]
    return f"rank{'' if len(ranks) == 1 else 's'} {', '.join(words)}"
