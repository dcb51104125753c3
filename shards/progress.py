"""The progress line of a command that reads a whole set."""

import sys
import time
from typing import TextIO

# How often the line is drawn: on a terminal in place, in a log as a line of its own.
TERMINAL_SECONDS = 0.5
LOG_SECONDS = 15.0


class ReadProgress:
    """Says how much of `total` has been read; a short command says nothing."""

    def __init__(self, what: str, total: int, stream: TextIO | None = None) -> None:
        self.what = what
        self.total = total
        self.stream = stream or sys.stderr
        self.on_terminal = self.stream.isatty()
        self.started = self.drawn = time.monotonic()
        self.done = 0
        self.width = 0

    def add(self, amount: int) -> None:
        """Count what was read, and draw the line if the last one is old enough."""
        self.done += amount
        now = time.monotonic()
        if now - self.drawn < (TERMINAL_SECONDS if self.on_terminal else LOG_SECONDS):
            return
        self.drawn = now
        line = describe_progress(self.what, self.done, self.total, now - self.started)
        self.stream.write("\r" + line.ljust(self.width) if self.on_terminal else line + "\n")
        self.stream.flush()
        self.width = len(line)

    def finish(self) -> None:
        """Wipe the line off the terminal."""
        if self.on_terminal and self.width:
            self.stream.write("\r" + " " * self.width + "\r")
            self.stream.flush()


def describe_progress(what: str, done: int, total: int, seconds: float) -> str:
    """The line.

    >>> describe_progress("tokens", 500, 2000, 10.0)
    ' 25%  500 of 2,000 tokens, 30 s left'
    """
    left = seconds * (total - done) / max(done, 1)
    return f"{done / max(total, 1):4.0%}  {done:,} of {total:,} {what}, {left:.0f} s left"
