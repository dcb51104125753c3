"""Folders of our own: made durably, cleared and removed, and never through a symbolic link.

The folder that a user names may be a link, to another disk say. What is in our own folders inside
it may not: whatever a link leads to is somebody else's, and would be emptied or written over.
"""

import errno
import os
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path

from shards.disk.durable import sync_folder
from shards.disk.layout import INDEX, PULL, VERSIONS, WORK

# The Hub's client works in folders with this ending, by its own rules; they are only ever removed.
FOREIGN = ".part"


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, if need be; their names survive a power cut."""
    if folder.is_dir():
        return
    if folder.is_symlink():
        raise ValueError(
            f"{folder}: is a link to {os.readlink(folder)}, where there is no folder; make that one"
        )
    make_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise NotADirectoryError(
                errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)
            ) from None
    with suppress(PermissionError):  # A folder that we may pass through and not read.
        sync_folder(folder.parent)


def refuse_links(folder: Path) -> None:
    """ValueError that names a symbolic link in a folder of the set's own (.prep, versions, ...)."""
    for name in (WORK, PULL, VERSIONS, INDEX):
        link = find_link(folder / name)
        if link is not None:
            raise ValueError(
                f"{link}: is a symbolic link to {os.readlink(link)}; nothing is written or deleted "
                f"through links, so remove it; only {folder} itself may be one"
            )


def find_link(path: Path) -> Path | None:
    """The first symbolic link at `path` or below it; None if there is none."""
    if path.is_symlink():
        return path
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):  # Other parts come and go meanwhile.
        return None
    for entry in entries:
        if entry.is_symlink():
            return Path(entry.path)
        if entry.is_dir(follow_symlinks=False) and not entry.name.endswith(FOREIGN):
            link = find_link(Path(entry.path))
            if link is not None:
                return link
    return None


def remove(path: Path, ignore_errors: bool = False) -> None:
    """Remove a file, a link, or a folder and everything in it; what links lead to stays."""
    with suppress(OSError) if ignore_errors else nullcontext():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=ignore_errors)
        else:
            path.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove everything in one of our own folders; ValueError if it is a link."""
    if folder.is_symlink():
        raise ValueError(f"{folder}: is a symbolic link, so what it leads to is left as it is")
    for leftover in folder.iterdir():
        remove(leftover, ignore_errors=True)  # A download may still be ending there.
