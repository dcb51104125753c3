"""What a source file looks like when the run begins, so that a change is noticed.

A file that is written to while it is being read gives documents that were never in it, and one
that is written to between two of its units gives some documents twice or never.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ADVICE = "put it back and run the same command again, or choose another --out"


class Stamp(NamedTuple):
    """A file's size and modification time, and the machine that saw them."""

    num_bytes: int
    mtime_ns: int
    # Another machine may have a copy of the file at the same path, with another time.
    machine: str


def take_stamp(path: str | Path) -> Stamp:
    """The current stamp of a file."""
    status = os.stat(path)
    return Stamp(status.st_size, status.st_mtime_ns, platform.node())


def check_stamp(path: str | Path, before: Stamp) -> None:
    """Raise ValueError if a file is not as it was."""
    try:
        now = take_stamp(path)
    except OSError as error:
        raise ValueError(
            f"{path}: disappeared during the run ({error.strerror}); {ADVICE}"
        ) from None
    if now.num_bytes != before.num_bytes:
        change = f"had {before.num_bytes:,} bytes, has {now.num_bytes:,}"
    elif now.machine == before.machine and now.mtime_ns != before.mtime_ns:
        change = f"still has {now.num_bytes:,} bytes, and was written to"
    else:
        return
    raise ValueError(f"{path}: was changed during the run ({change}); {ADVICE}")


@contextmanager
def expect_unchanged(path: str | Path, before: Stamp | None) -> Iterator[None]:
    """Raise ValueError if a file is not as it was, before it is read or after the last read.

    An error while reading a file that was changed is reported as the change.
    """
    if before is None:
        yield
        return
    check_stamp(path, before)
    try:
        yield
    except ValueError:
        check_stamp(path, before)
        raise
    check_stamp(path, before)
