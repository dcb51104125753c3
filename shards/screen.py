"""What people read while a command runs: lines, the progress of a long job, and numbers."""

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TextIO

# Shows the user one line.
Say = Callable[[str], None]

# Seconds between two drawings: in place on a terminal, as a new line in a log.
TERMINAL_SECONDS = 0.5
LOG_SECONDS = 15.0


def say(text: str) -> None:
    """Tell the user something that is not the command's output."""
    print(text, file=sys.stderr, flush=True)


class ScreenLine:
    """A line that is redrawn in place on a terminal, and repeated as a new line in a log."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.on_terminal = self.stream.isatty()
        self.started = self.drawn = time.monotonic()
        self.width = 0

    @property
    def seconds(self) -> float:
        """Seconds since the line was created."""
        return time.monotonic() - self.started

    def is_due(self) -> bool:
        """Whether it is time to draw again; a short job never draws."""
        age = time.monotonic() - self.drawn
        return age >= (TERMINAL_SECONDS if self.on_terminal else LOG_SECONDS)

    def draw(self, text: str) -> None:
        """Show `text` in place of the last line."""
        self.drawn = time.monotonic()
        if self.on_terminal:
            self.stream.write("\r" + text.ljust(self.width))
            self.width = len(text)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def say(self, text: str) -> None:
        """Print `text` on a line that stays."""
        self.clear()
        self.stream.write(text + "\n")
        self.stream.flush()

    def clear(self) -> None:
        """Wipe the line off a terminal; a log keeps its lines."""
        if self.on_terminal and self.width:
            self.stream.write("\r" + " " * self.width + "\r")
            self.stream.flush()
            self.width = 0


def format_bytes(count: float) -> str:
    """A size as people read it.

    >>> format_bytes(2_766_953_721_769)
    '2.77 TB'
    """
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def format_count(count: float) -> str:
    """A number of tokens or documents as people read it.

    >>> format_count(600_000_000_000)
    '600 G'
    """
    for unit in ("", " K", " M", " G"):
        if count < 1000:
            return f"{count:.0f}{unit}" if not unit else f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} T"


def format_seconds(seconds: float) -> str:
    """A duration as people read it.

    >>> format_seconds(3725)
    '1:02:05'
    """
    return str(timedelta(seconds=round(seconds)))


class ReadProgress:
    """Shows how much of `total` has been read; a short command shows nothing."""

    def __init__(self, what: str, total: int, stream: TextIO | None = None) -> None:
        self.what = what
        self.total = total
        self.line = ScreenLine(stream)
        self.done = 0

    def add(self, amount: int) -> None:
        """Count what was read, and draw the line if it is time to."""
        self.done += amount
        if self.line.is_due():
            seconds = self.line.seconds
            self.line.draw(describe_progress(self.what, self.done, self.total, seconds))

    def finish(self) -> None:
        """Wipe the line off the terminal."""
        self.line.clear()


def describe_progress(what: str, done: int, total: int, seconds: float) -> str:
    """The progress line: share, amount and time left.

     describe_progress("tokens", 500, 2000, 10.0)
    ' 25%  500 of 2,000 tokens, 30 s left'
    """
    left = seconds * (total - done) / max(done, 1)
    return f"{done / max(total, 1):4.0%}  {done:,} of {total:,} {what}, {left:.0f} s left"
