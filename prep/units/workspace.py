"""`--part i/n`: whose units are whose, and who may work in a folder at the same time.

.prep/lock                   held by a run of the whole set, and by --finish
.prep/parts/3-of-8.lock      held by a run of part 3/8
.prep/parts/plan.lock        held by the part that makes the plan, while it does

Runs of the whole keep parts out, and the other way round: each takes its own lock first and then
looks at the others', so that of two that start at once one at least sees the other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prep.units.receipts import work_folder
from shards.disk.lock import describe_holder, hold, is_held
from shards.edit.part import Part


def whole_lock(out: Path) -> Path:
    """The lock of a run of the whole set."""
    return work_folder(out) / "lock"


def parts_folder(out: Path) -> Path:
    """Where the parts' locks lie."""
    return work_folder(out) / "parts"


def part_lock(out: Path, part: Part) -> Path:
    """The lock of a part."""
    return parts_folder(out) / f"{part.number}-of-{part.count}.lock"


def find_parts(out: Path) -> list[Part]:
    """The parts that were ever started here, the last one last."""
    notes = sorted(parts_folder(out).glob("*-of-*.holder"), key=lambda path: path.stat().st_mtime)
    return [Part(*map(int, path.name.split(".")[0].split("-of-"))) for path in notes]


@contextmanager
def hold_whole(out: Path) -> Iterator[None]:
    """Work in `out` alone; ValueError where somebody else is at work there."""
    with hold(whole_lock(out), f"{out}: another velocity prep is at work there"):
        refuse_parts(out, find_parts(out))
        yield


@contextmanager
def hold_part(out: Path, part: Part) -> Iterator[None]:
    """Work on a part, beside the others of the same count; ValueError where that cannot be."""
    lock = part_lock(out, part)
    with hold(lock, f"{out}: another process is at work on part {part}"):
        if is_held(whole_lock(out)):
            raise ValueError(
                f"{out}: a velocity prep without --part is at work there"
                f"{describe_holder(whole_lock(out))}; wait for it, or stop it"
            )
        refuse_parts(out, [other for other in find_parts(out) if other.count != part.count])
        yield


@contextmanager
def hold_plan(out: Path) -> Iterator[None]:
    """Be the one that makes the plan; waits while another does."""
    with hold(parts_folder(out) / "plan.lock", "", seconds=-1):
        yield


def refuse_parts(out: Path, parts: list[Part]) -> None:
    """ValueError where one of these parts is being worked on."""
    for part in parts:
        lock = part_lock(out, part)
        if is_held(lock):
            raise ValueError(
                f"{out}: part {part} is at work there{describe_holder(lock)}; "
                "wait for it, or stop it"
            )
