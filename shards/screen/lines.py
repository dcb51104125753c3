"""What people read while a command runs: lines, the progress of a long job, and numbers.

Everything that is printed goes through here. What comes from data cannot give orders to a
terminal or look like a line of ours (shards/screen/names.py), and no secret is shown
(shards/screen/secrets.py).
"""

import io
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TextIO

from shards.screen.names import escape, escape_line
from shards.screen.secrets import hide, hide_known

# Shows the user one line.
Say = Callable[[str], None]

# Seconds between two drawings: in place on a terminal, as a new line in a log.
TERMINAL_SECONDS = 0.5
LOG_SECONDS = 15.0
BOLD, PLAIN = "\033[1m", "\033[0m"
GREEN, RED = "\033[32m", "\033[31m"
# Around what is marked, and what is bad, where there are no colors.
BRACKETS = ("\u27e6", "\u27e7"), ("\u27ea", "\u27eb")


def say(text: str) -> None:
    """Tell the user something that is not the command's output, in one line."""
    write_aside(sys.stderr, make_line(text) + "\n")


def say_text(text: str) -> None:
    """The same in several lines, such as a traceback."""
    write_aside(sys.stderr, escape(hide(text)).rstrip("\n") + "\n")


def put(line: str, bold: bool = False) -> None:
    """Print a line of the command's output; on a terminal perhaps in bold letters."""
    line = escape_line(hide_known(line))
    write_out(f"{BOLD}{line}{PLAIN}\n" if bold and sys.stdout.isatty() else f"{line}\n")


def put_text(text: str) -> None:
    """Print a text of the data: as it is, but escaped on a terminal."""
    write_out((escape(text) if sys.stdout.isatty() else text) + "\n")


def put_marked(parts: Iterable[tuple[str, bool, bool]]) -> None:
    """Print a text of the data, some parts of which are marked, or marked and bad.

    On a terminal they are green or red, elsewhere in brackets of two kinds.
    """
    on_terminal = sys.stdout.isatty()
    written = []
    for text, is_marked, is_bad in parts:
        shown = escape(text) if on_terminal else text
        before, after = ((RED if is_bad else GREEN), PLAIN) if on_terminal else BRACKETS[is_bad]
        written.append(f"{before}{shown}{after}" if is_marked else shown)
    write_out("".join(written) + "\n")


def open_output() -> Callable[[str], None]:
    """A function that writes texts to standard output piece by piece, each at once.

    A terminal shows what it cannot encode, and control characters, as escapes. A file or a pipe
    gets the text itself, in UTF-8.
    """
    stream = sys.stdout
    on_terminal = stream.isatty()
    if isinstance(stream, io.TextIOWrapper):
        if on_terminal:
            stream.reconfigure(errors="backslashreplace")
        else:
            stream.reconfigure(encoding="utf-8")

    def show(text: str) -> None:
        stream.write(escape(text) if on_terminal else text)
        stream.flush()

    return show


class LogLines(logging.Handler):
    """Says what is logged, for the modules that cannot import this one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say a record's message."""
        say(record.getMessage())


def make_line(text: str) -> str:
    """A text as one line that may be shown."""
    return escape_line(hide(text))


def write_out(text: str) -> None:
    """Write to standard output; what its encoding lacks is escaped."""
    sys.stdout.write(fit_encoding(sys.stdout, text))
    sys.stdout.flush()


def write_aside(stream: TextIO, text: str) -> None:
    """Write what no work may depend on: it goes on where a terminal or a log is gone or full."""
    with suppress(OSError, ValueError):
        stream.write(fit_encoding(stream, text))
        stream.flush()


def fit_encoding(stream: TextIO, text: str) -> str:
    """A text with what the stream's encoding lacks escaped."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


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
        line = make_line(text)
        if self.on_terminal:
            write_aside(self.stream, "\r" + line.ljust(self.width))
            self.width = len(line)
        else:
            write_aside(self.stream, line + "\n")

    def say(self, text: str) -> None:
        """Print `text` on a line that stays."""
        self.clear()
        write_aside(self.stream, make_line(text) + "\n")

    def keep(self) -> None:
        """Let the line that is drawn stay; the next one comes below it."""
        if self.on_terminal and self.width:
            write_aside(self.stream, "\n")
            self.width = 0

    def clear(self) -> None:
        """Wipe the line off a terminal; a log keeps its lines."""
        if self.on_terminal and self.width:
            write_aside(self.stream, "\r" + " " * self.width + "\r")
            self.width = 0


def format_bytes(count: float) -> str:
    """A size as people read it.

    >>> format_bytes(2_766_953_721_769), format_bytes(999_900_000_000)
    ('2.77 TB', '1 TB')
    """
    return scale(count, (" B", " KB", " MB", " GB", " TB"))


def format_count(count: float) -> str:
    """A number of tokens or documents as people read it.

    >>> format_count(600_000_000_000), format_count(999_999), format_count(2e15)
    ('600 G', '1 M', '2,000 T')
    """
    return scale(count, ("", " K", " M", " G", " T"))


def scale(count: float, units: Sequence[str]) -> str:
    """A number in three digits, in the first of these units, each 1000 of the last, that fits."""
    place = 0
    while count >= 999.5 and place < len(units) - 1:
        count, place = count / 1000, place + 1
    return (f"{count:.3g}" if place and count < 999.5 else f"{count:,.0f}") + units[place]


def format_number(value: float) -> str:
    """A number in four digits, as people read it.

    >>> format_number(12345.6), format_number(5.84321), format_number(6e-4), format_number(0.0)
    ('12,346', '5.843', '0.0006', '0')
    """
    if abs(value) >= 1e9 or 0 < abs(value) < 1e-4:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def format_plural(count: int, noun: str) -> str:
    """So many of something.

    >>> format_plural(1, "GPU"), format_plural(1024, "GPU")
    ('1 GPU', '1,024 GPUs')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's rows as lines, with its cells in columns.

    >>> align([["a", "parameters"], ["tiny", "7"]])
    ['a     parameters', 'tiny  7']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def format_seconds(seconds: float) -> str:
    """A duration as people read it.

    >>> format_seconds(3725)
    '1:02:05'
    """
    return str(timedelta(seconds=round(seconds)))


def format_time(seconds: float) -> str:
    """A duration of any length, in its largest unit of which there are two.

    >>> format_time(99_000_000), format_time(100_000), format_time(0.4219)
    ('1,146 days', '27.78 hours', '0.4219 seconds')
    """
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{format_number(seconds / size)} {unit}"
    return f"{format_number(seconds)} seconds"


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

    >>> describe_progress("tokens", 500, 2000, 10.0)
    ' 25%  500 of 2,000 tokens, 30 s left'
    """
    left = seconds * (total - done) / max(done, 1)
    return f"{done / max(total, 1):4.0%}  {done:,} of {total:,} {what}, {left:.0f} s left"
