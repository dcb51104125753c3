"""Free disk: checked before a command begins, in one wording."""

import shutil
from pathlib import Path

from shards.screen import format_bytes


def check_space(folder: Path, num_bytes: int, advice: str, details: str = "") -> str:
    """Say what a command needs of the disk, and what is free.

    `details` follow the need, in parentheses, and `advice` says what else to do than to free some.
    Raises ValueError where the disk of `folder`, which is there, has less than `num_bytes` free.
    """
    free = shutil.disk_usage(folder).free
    needed = f"about {format_bytes(num_bytes)} of disk is needed in {folder}"
    if details:
        needed += f" ({details})"
    if num_bytes > free:
        raise ValueError(f"{needed}, and {format_bytes(free)} is free; free some, or {advice}")
    return f"{needed}; {format_bytes(free)} is free"
