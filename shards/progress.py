"""The progress line of a command that reads a whole set."""

from typing import TextIO

from shards.screen import ScreenLine


class ReadProgress:
    """Says how much of `total` has been read; a short command says nothing."""

    def __init__(self, what: str, total: int, stream: TextIO | None = None) -> None:
        self.what = what
        self.total = total
        self.line = ScreenLine(stream)
        self.done = 0

    def add(self, amount: int) -> None:
        """Count what was read, and draw the line if the last one is old enough."""
        self.done += amount
        if self.line.is_due():
            seconds = self.line.seconds
            self.line.draw(describe_progress(self.what, self.done, self.total, seconds))

    def finish(self) -> None:
        """Wipe the line off the terminal."""
        self.line.clear()


def describe_progress(what: str, done: int, total: int, seconds: float) -> str:
    """The line.

    >>> describe_progress("tokens", 500, 2000, 10.0)
    ' 25%  500 of 2,000 tokens, 30 s left'
    """
    left = seconds * (total - done) / max(done, 1)
    return f"{done / max(total, 1):4.0%}  {done:,} of {total:,} {what}, {left:.0f} s left"
