"""Where an export comes to be: beside its place, under another name, until it is certified.

A process that is killed leaves `.NAME.partial`, which the next try removes; under the final name
there is a whole export, or nothing.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_place(out: Path, num_bytes: int) -> None:
    """Raise ValueError if something is there already, or if the disk is too small."""
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out}: is there already; name a new place with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if num_bytes > free:
        raise ValueError(
            f"about {num_bytes / 1e6:,.0f} MB of disk are needed in {out.parent}, and "
            f"{free / 1e6:,.0f} MB are free; free some, or choose another --out"
        )


@contextmanager
def making(out: Path) -> Iterator[Path]:
    """A folder for what will be at `out`; it is removed in the end, whatever happens."""
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def put_file(made: Path, out: Path) -> None:
    """Give a file its final name, durably."""
    sync(made)
    os.rename(made, out)
    sync(out.parent)


def put_folder(made: Path, out: Path) -> None:
    """Give a folder its final name, durably."""
    for path in sorted(made.rglob("*")):
        sync(path)
    sync(made)
    os.rename(made, out)
    sync(out.parent)


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    if os.name == "nt" and path.is_dir():  # Windows has no handle on a folder to flush.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
