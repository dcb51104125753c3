"""Locks in a folder that several machines may share, none of which a dead process keeps.

The kernel's own locks are used (flock): they end with their process, and reach all machines of an
NFSv4, Lustre, GPFS or Ceph file system. Where a file system has none, a file that exists is the
lock; it is taken over if its process was on this machine and is gone. Beside a lock lies a note of
who took it last.
"""

import errno
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from shards.disk.durable import naming
from shards.disk.layout import set_lock

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
# A look whether a lock is held holds it for a moment: wait so long for others who look.
PROBE_SECONDS = 2.0


@contextmanager
def hold(path: Path, found: str, seconds: float | None = None) -> Iterator[None]:
    """Hold a lock; ValueError saying what was `found` where another process keeps holding it.

    `seconds` is how long to wait for it, if not for those who only look; -1 = as long as it takes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = acquire(path, PROBE_SECONDS if seconds is None else seconds)
    if not lock.is_locked:
        remove = ""
        if isinstance(lock, SoftFileLock):
            remove = f"; if it is gone, remove {path}"
        raise ValueError(f"{found}{describe_holder(path)}; wait for it, or stop it{remove}")
    try:
        note_holder(path)
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether another process keeps holding a lock."""
    if not path.exists():
        return False
    lock = acquire(path, PROBE_SECONDS)
    held = not lock.is_locked
    lock.release()
    return held


def acquire(path: Path, seconds: float) -> BaseFileLock:
    """A lock that was tried for so long; `is_locked` says whether it was got."""
    lock: BaseFileLock = FileLock(path)
    with suppress(Timeout):
        try:
            lock.acquire(timeout=seconds)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            lock = SoftFileLock(path)
            lock.acquire(timeout=seconds)
    return lock


def note_path(path: Path) -> Path:
    """Where it is noted who took a lock last."""
    return path.with_name(f"{path.name}.holder")


def note_holder(path: Path) -> None:
    """Write down for others who holds a lock."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    with naming(note_path(path)):
        note_path(path).write_text(
            f"{platform.node()}, process {os.getpid()}, since {since}", encoding="utf-8"
        )


def describe_holder(path: Path) -> str:
    """Who holds a lock, in parentheses, as far as it is known."""
    try:
        return f" ({note_path(path).read_text(encoding='utf-8')})"
    except OSError:
        return ""


@contextmanager
def lock_set(folder: Path) -> Iterator[None]:
    """Be the only process that changes the set; ValueError where another one is at it."""
    with hold(set_lock(folder), f"{folder}: another velocity command is changing this set"):
        yield
