"""The folder that prep works in: who may work there at the same time, and what is cleared up.

A run of the whole set, and --finish, hold `set_lock`; a run of a part holds `part_lock`. Runs of
the whole keep parts out, and vice versa: each takes its own lock first and then looks at
the others', so of two that start at once, at least one sees the other.
"""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.disk.durable import commit, sync_folder, write_file
from shards.disk.folders import clear, make_folder, remove
from shards.disk.layout import (
    downloads_folder,
    near_folder,
    part_lock,
    parts_folder,
    plan_lock,
    receipts_folder,
    set_lock,
    temporary_folder,
)
from shards.disk.lock import describe_holder, hold, is_held
from shards.disk.part import Part


def find_parts(out: Path) -> list[Part]:
    """The parts that were ever started here, the latest last."""
    notes = sorted(parts_folder(out).glob("*-of-*.holder"), key=lambda path: path.stat().st_mtime)
    found = (re.fullmatch(r"(\d+)-of-(\d+)\.lock\.holder", path.name) for path in notes)
    return [Part(int(match[1]), int(match[2])) for match in found if match]


@contextmanager
def hold_whole(out: Path) -> Iterator[None]:
    """Hold `out` alone; ValueError if another process is working there."""
    with hold(out, set_lock(out), f"{out}: another velocity prep is running there"):
        refuse_parts(out, find_parts(out))
        make_folders(out)
        yield


@contextmanager
def hold_part(out: Path, part: Part) -> Iterator[None]:
    """Hold a part, beside others of the same count; ValueError if another process is in the way."""
    lock = part_lock(out, part)
    with hold(out, lock, f"{out}: another process is working on part {part}"):
        if is_held(set_lock(out)):
            raise ValueError(
                f"{out}: a velocity prep without --part is running there"
                f"{describe_holder(set_lock(out))}; wait for it, or stop it"
            )
        refuse_parts(out, [other for other in find_parts(out) if other.count != part.count])
        make_folders(out)
        yield


@contextmanager
def hold_plan(out: Path) -> Iterator[None]:
    """Be the only one to make the plan; waits while another process does."""
    with hold(out, plan_lock(out), "", seconds=-1):
        yield


def refuse_parts(out: Path, parts: list[Part]) -> None:
    """ValueError if one of these parts is being worked on."""
    for part in parts:
        lock = part_lock(out, part)
        if is_held(lock):
            raise ValueError(
                f"{out}: part {part} is running there{describe_holder(lock)}; "
                "wait for it, or stop it"
            )


def make_folders(folder: Path) -> None:
    """Make the folders that prep works in."""
    for inner in (receipts_folder(folder), temporary_folder(folder), downloads_folder(folder)):
        make_folder(inner)


def write_first(path: Path, content: str, temporary: Path) -> bool:
    """Write a file unless it exists, even if others try at once; returns whether it was written."""
    own = temporary / f"{path.name}-{secrets.token_hex(8)}"
    write_file(own, content)
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError:  # A file system without links: of two that write at once, the last one wins.
        commit(own, path)
        return True
    finally:
        own.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def clear_part(out: Path, part: Part) -> None:
    """Remove the unfinished files that a killed process of this part left."""
    for leftover in temporary_folder(out).iterdir():
        unit = leftover.name.partition("-")[0]
        if unit.isdigit() and int(unit) % part.count == part.number:
            remove(leftover, ignore_errors=True)


def clear_leftovers(out: Path) -> None:
    """Remove what a finished set needs no more, or workers left that were stopped as it was full.

    What was decided about near copies stays: a unit that is lost later is cut by it again.
    """
    for folder in (temporary_folder(out), downloads_folder(out)):
        clear(folder)
    for path in near_folder(out).glob("[0-9]*"):
        path.unlink()
