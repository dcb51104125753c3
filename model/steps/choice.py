"""What was timed to be faster on this machine, kept beside what was compiled for it.

Two ways of computing the same are rounded otherwise, so that a seed gives the same text again only
if the same way is taken again: what is timed anew may come out otherwise where both are as fast.
"""

import hashlib
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from model.compiled import find_folder, replace_file


def find_choice(asked: str, choices: Collection[int], choose: Callable[[], int]) -> int:
    """The number that was chosen when the same was asked before, or else is chosen now, and kept.

    Where nothing can be kept, it is chosen every time.
    """
    path = find_folder() / f"choice-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
    kept = read_number(path)
    if kept is not None and kept in choices:
        return kept
    chosen = choose()
    with suppress(OSError):
        replace_file(path, lambda new: new.write_text(f"{chosen}\n", "ascii"))
    return chosen


def read_number(path: Path) -> int | None:
    """The number in a file; None where there is none."""
    try:
        return int(path.read_bytes()[:9])
    except (OSError, ValueError):
        return None
