"""Where an export comes to be: beside its place, under another name, until it is certified.

A process that is killed leaves `.NAME.partial`, which the next try removes; under the final name
there is a whole export, or nothing. Of two processes with one place, the second is refused.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from model.checkpoints.seal import sync


def check_places(places: Sequence[Path], num_bytes: int) -> None:
    """Raise ValueError if something is there already, or if the disk is too small."""
    for place in places:
        refuse_taken(place)
    folder = places[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ValueError(
            f"about {num_bytes / 1e6:,.0f} MB of disk are needed in {folder}, and "
            f"{free / 1e6:,.0f} MB are free; free some, or choose another --out"
        )


def refuse_taken(place: Path) -> None:
    """Raise ValueError if something is there, whatever it is: nothing is overwritten."""
    if place.exists() or place.is_symlink():
        raise ValueError(f"{place}: is there already; name a new place with --out")


@contextmanager
def making(out: Path) -> Iterator[Path]:
    """A folder for what will be at `out`; it is removed in the end, whatever happens.

    ValueError if another process is making it.
    """
    partial = out.parent / f".{out.name}.partial"
    partial.mkdir(exist_ok=True)
    made = partial / "made"
    try:
        with FileLock(partial / "lock", timeout=0):
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            try:
                yield made
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except Timeout:
        raise ValueError(
            f"{out}: another export is being made there; wait for it, or name another --out"
        ) from None


def put(made: Sequence[Path], places: Sequence[Path]) -> None:
    """Give files or a folder their final names, durably and the first one last.

    ValueError, with nothing renamed, if something came to one of the places since.
    """
    for path in made:
        for each in [*sorted(path.rglob("*")), path]:
            sync(each)
    for place in places:
        refuse_taken(place)
    for path, place in reversed([*zip(made, places, strict=True)]):
        os.rename(path, place)
        sync(place.parent)
