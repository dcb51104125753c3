"""The progress line of a prep run: rate, share done, time left."""

from collections.abc import MutableSequence
from dataclasses import dataclass
from typing import TextIO

from prep.engines.contract import NUM_COUNTERS
from shards.screen.lines import ScreenLine, format_bytes, format_count, format_seconds


@dataclass(frozen=True)
class Goal:
    """What 100 % means: the expected text, and the token limit if there is one."""

    text_bytes: int
    max_tokens: int | None


def share_done(goal: Goal, tokens: int, text_bytes: int) -> float:
    """How much of the run is done, from 0 to 1: by text read, or by tokens if they are limited.

    >>> share_done(Goal(1000, max_tokens=100), tokens=50, text_bytes=200)
    0.5
    """
    share = text_bytes / max(goal.text_bytes, 1)
    if goal.max_tokens is not None:
        share = max(share, tokens / goal.max_tokens)
    return min(share, 1.0)


class ProgressLine:
    """Draws the line from the counters of the units (documents, tokens, bytes of text each)."""

    def __init__(self, goal: Goal, stream: TextIO | None = None) -> None:
        self.goal = goal
        self.line = ScreenLine(stream)

    def tick(self, counters: MutableSequence[int]) -> None:
        """Redraw the line if the last one is old enough."""
        if self.line.is_due():
            self.line.draw(self.describe(counters, self.line.seconds))

    def describe(self, counters: MutableSequence[int], seconds: float) -> str:
        """The text of the line, `seconds` after the start."""
        documents, tokens, text_bytes = (
            sum(counters[kind::NUM_COUNTERS]) for kind in range(NUM_COUNTERS)
        )
        share = share_done(self.goal, tokens, text_bytes)
        left = format_seconds(seconds / share - seconds) if share else "?"
        return (
            f"{share:4.0%}  {format_count(tokens)} tokens, {format_count(documents)} documents  "
            f"{format_count(tokens / seconds)} tokens/s, {format_bytes(text_bytes / seconds)}/s  "
            f"{left} left"
        )

    def finish(self) -> None:
        """Remove the line from the screen."""
        self.line.clear()
