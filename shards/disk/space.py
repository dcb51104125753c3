"""Free disk space: checked before a command begins, with the same message everywhere."""

import shutil
from pathlib import Path

from shards.screen.lines import format_bytes


def check_space(folder: Path, num_bytes: int, advice: str, details: str = "") -> str:
    """A line that says how much disk a command needs and how much is free.

    `details` follow the need, in parentheses; `advice` is the alternative to freeing some.
    Raises ValueError if the disk of `folder`, which must exist, has less than `num_bytes` free.
    """
    free = shutil.disk_usage(folder).free
    needed = f"about {format_bytes(num_bytes)} of disk is needed in {folder}"
    if details:
        needed += f" ({details})"
    if num_bytes > free:
        raise ValueError(f"{needed}, and {format_bytes(free)} is free; free some, or {advice}")
    return f"{needed}; {format_bytes(free)} is free"
