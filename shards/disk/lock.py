"""Locks in a folder that several machines may share; a dead process does not keep one.

They are the kernel's own locks (flock), which end with their process and reach every machine on
an NFSv4, Lustre, GPFS or Ceph file system. On a file system without them, the existence of a file
is the lock; it is taken over if its process was on this machine and is gone. A note next to each
lock says who took it last.

    set_lock     a run of the whole set, --finish, --append, import, remove, index;
                 a pull over a set; push if it may write
    part_lock    a run of one part
    plan_lock    the part that makes the plan, while it does
    pull_lock    a pull

At a URL, upload.json does the same (shards/exchange/claim.py).
"""

import errno
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from shards.disk.durable import write_file
from shards.disk.folders import make_folder, refuse_links
from shards.disk.layout import set_lock

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
# Checking whether a lock is held takes it for a moment: how long to wait for others who check.
PROBE_SECONDS = 2.0


@contextmanager
def hold(folder: Path, path: Path, found: str, seconds: float | None = None) -> Iterator[None]:
    """Hold a lock of the set in `folder`; ValueError, beginning with `found`, if it is taken.

    Waits up to `seconds`, -1 = as long as it takes; by default just long enough to outlast a check.
    Whatever changes the folder holds a lock first, so this is where links in it are refused.
    """
    refuse_links(folder)
    make_folder(path.parent)
    lock = acquire(path, PROBE_SECONDS if seconds is None else seconds)
    if not lock.is_locked:
        remove = ""
        if isinstance(lock, SoftFileLock):
            remove = f"; if it is gone, remove {lock.lock_file}"
        raise ValueError(f"{found}{describe_holder(path)}; wait for it, or stop it{remove}")
    try:
        note_holder(path)
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether another process holds a lock for longer than a check takes."""
    if not (path.exists() or soft_path(path).exists()):
        return False
    lock = acquire(path, PROBE_SECONDS)
    held = not lock.is_locked
    lock.release()
    return held


def acquire(path: Path, seconds: float) -> BaseFileLock:
    """Try for `seconds` to take a lock; `is_locked` of what is returned says if it was taken."""
    lock: BaseFileLock = FileLock(path)
    with suppress(Timeout):
        try:
            lock.acquire(timeout=seconds)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            lock = SoftFileLock(soft_path(path))
            lock.acquire(timeout=seconds)
    return lock


def soft_path(path: Path) -> Path:
    """The file that is the lock where the file system has none.

    It needs a name of its own: a kernel lock that could not be taken leaves its file behind.
    """
    return path.with_name(f"{path.name}.soft")


def note_path(path: Path) -> Path:
    """The note of who took a lock last."""
    return path.with_name(f"{path.name}.holder")


def note_holder(path: Path) -> None:
    """Note for others that this process holds a lock."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    write_file(note_path(path), f"{platform.node()}, process {os.getpid()}, since {since}")


def is_held_elsewhere(path: Path) -> bool:
    """Whether another machine was the last to take a lock; it may have been lost since."""
    holder = read_holder(path)
    return holder is not None and holder.partition(",")[0] != platform.node()


def describe_holder(path: Path) -> str:
    """Who holds a lock, in parentheses after a space; "" if unknown."""
    holder = read_holder(path)
    return "" if holder is None else f" ({holder})"


def read_holder(path: Path) -> str | None:
    """The note of who took a lock last, as `note_holder` writes it; None if it cannot be read."""
    try:
        return note_path(path).read_text(encoding="utf-8")
    except OSError:
        return None


@contextmanager
def lock_set(folder: Path) -> Iterator[None]:
    """Be the only process that changes the set; ValueError if another one is changing it."""
    found = f"{folder}: another velocity command is changing this set"
    with hold(folder, set_lock(folder), found):
        yield
