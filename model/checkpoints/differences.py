"""What keeps a folder's model from being loaded: everything at once, in one line or a table."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model.checkpoints.seal import CheckpointError

MAX_ROWS = 20
# Names and values are a stranger's.
MAX_CHARS = 60
HEADER = ("", "found", "expected", "what to do")


@dataclass(frozen=True)
class Difference:
    """Something in a folder that is not as this model could be."""

    # A key of config.json, or a weight.
    key: str
    found: str
    expected: str
    remedy: str

    @property
    def line(self) -> str:
        """The difference in one line."""
        key, found = shorten(self.key), shorten(self.found)
        return f"{key} is {found}, expected {self.expected}; {self.remedy}"


class DifferentError(ValueError):
    """What differs, if a config.json does not describe a model that can be loaded."""

    def __init__(self, differences: Sequence[Difference]) -> None:
        super().__init__("; ".join(difference.line for difference in differences))
        self.differences = differences


def make_error(origin: Path, differences: Sequence[Difference]) -> CheckpointError:
    """An error that has the first difference in its line, and a table of several in its notes.

    `origin` is the file that they are in. Notes are told below an error's line.
    """
    line = differences[0].line
    if len(differences) == 1:
        return CheckpointError(f"{origin}: {line}")
    error = CheckpointError(f"{origin}: {len(differences):,} differences, the first: {line}")
    for row in tabulate(differences):
        error.add_note(row)
    return error


@contextmanager
def explaining(origin: Path) -> Iterator[None]:
    """Turn what is wrong with the values of the file `origin` into a CheckpointError."""
    try:
        yield
    except DifferentError as error:
        raise make_error(origin, error.differences) from None
    except ValueError as error:
        raise CheckpointError(f"{origin}: {error}") from None


def tabulate(differences: Sequence[Difference]) -> Iterable[str]:
    """A table in lines, with one for each difference, up to MAX_ROWS."""
    rows = [HEADER] + [
        (shorten(entry.key), shorten(entry.found), entry.expected, entry.remedy)
        for entry in differences[:MAX_ROWS]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
    if len(differences) > MAX_ROWS:
        yield f"... and {len(differences) - MAX_ROWS:,} more"


def shorten(text: str) -> str:
    """A text of a stranger's file, of no great length."""
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}..."
