"""What is at a path, looked at before it is read: a file, and not something that stands for one."""

import os
import stat
from pathlib import Path

# What stands in a clone for a file that was not fetched: how it begins, its name, what fetches it.
_POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "git-lfs", "git lfs pull"),
    (b"version https://hawser.github.com/spec/", "git-lfs", "git lfs pull"),
    (b"/annex/objects/", "git-annex", "git annex get"),
)
_MAX_POINTER_BYTES = 1024


def check_readable(path: Path) -> None:
    """ValueError for what is no file, cannot be opened, or is a pointer to a file elsewhere."""
    status = examine(path)
    refuse_special(path, status)
    try:
        with open(path, "rb") as file:
            head = file.read(_MAX_POINTER_BYTES)
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened ({error.strerror})") from None
    for start, name, command in _POINTERS:
        if head.startswith(start) and status.st_size < _MAX_POINTER_BYTES:
            raise ValueError(f"{path}: is a {name} pointer, not the file; {command} brings it")


def check_name(name: str) -> None:
    """ValueError for a file's name that is not UTF-8, as all names in a set are."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        raise ValueError(
            f"{shown}: this name is not UTF-8, as names in a set are; rename the file or folder"
        ) from None


def examine(path: Path) -> os.stat_result:
    """What is at a path; ValueError naming it if that cannot be found out."""
    try:
        return os.stat(path)
    except OSError as error:
        if path.is_symlink():
            raise ValueError(
                f"{path}: is a link to {os.readlink(path)}, which cannot be opened "
                f"({error.strerror}); mount or restore what it leads to, or remove the link"
            ) from None
        raise ValueError(f"{path}: cannot be opened ({error.strerror})") from None


def refuse_special(path: Path, status: os.stat_result) -> None:
    """ValueError for what cannot be read twice, before a byte of it is taken."""
    mode = status.st_mode
    kinds = [
        (stat.S_ISFIFO(mode), "pipe"),
        (stat.S_ISSOCK(mode), "socket"),
        (stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "device"),
    ]
    for is_kind, name in kinds:
        if is_kind:
            raise ValueError(f"{path}: is a {name}; write it to a file first")
