"""Writes that survive a kill or a power cut: a file is there whole or not at all."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

# What to do about a write error, by errno; the message before it is the system's.
FREE_SOME = "free some disk and run the same command again"
WRITING_ADVICE = {
    errno.ENOSPC: FREE_SOME,
    errno.EDQUOT: FREE_SOME,
    errno.EFBIG: "raise that limit (ulimit -f) and run the same command again",
    errno.EROFS: "make it writable and run the same command again, or choose another folder",
}


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, so that renames in it survive a power cut."""
    if os.name == "nt":  # Windows has no handle on a folder to flush.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(file: IO[Any]) -> None:
    """Make what was written to an open file durable."""
    file.flush()
    os.fsync(file.fileno())


def commit(temporary: Path, final: Path) -> None:
    """Give a written and fsynced file its final name, durably."""
    os.replace(temporary, final)
    sync_folder(final.parent)


def open_new(path: Path) -> BinaryIO:
    """Open a file of our own to write it anew; what a link of that name leads to stays."""
    path.unlink(missing_ok=True)
    return open(path, "xb")


def write_file(path: Path, content: str) -> None:
    """Write a small text file durably: under a temporary name first, then renamed to `path`."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with naming(path), open_new(temporary) as file:
            file.write(content.encode())
            sync_file(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    commit(temporary, path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError raised while writing it; the system leaves it out."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def advise_writing(error: OSError) -> str:
    """What to do about a write error; "" if there is no general advice."""
    return WRITING_ADVICE.get(error.errno or 0, "")


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
