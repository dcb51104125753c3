"""`velocity prep --finish`: the parts' work -> one set, if nothing is missing or damaged."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prep.copies.cut import finish_units, list_files
from prep.engines.local import count_cores
from prep.manifest import summarize, write_manifest
from prep.planning.plan import Plan, read_plan
from prep.planning.settle import refuse_lost_version
from prep.request import Request
from prep.units.budget import Budget
from prep.units.ledger import Ledger
from prep.units.receipts import Receipt, discard_unit
from prep.units.workspace import clear_leftovers, find_parts, hold_whole
from shards.disk.durable import hash_file
from shards.disk.folders import clear
from shards.disk.layout import (
    MANIFEST,
    TOKENIZER,
    decided_path,
    near_path,
    plan_path,
    temporary_folder,
)
from shards.format import Manifest, read_manifest
from shards.screen.lines import Say, format_bytes

MAX_NAMED = 8


def finish_parts(request: Request, say: Say) -> Manifest:
    """Check that every unit is there and whole, and write the manifest.

    Raises ValueError naming what is missing or damaged, and the parts to run again; a damaged
    unit is discarded, so that its part makes it again.
    """
    out, workers = request.out, request.workers or count_cores()
    if not plan_path(out).exists():
        raise ValueError(
            f"{out}: no plan here, so no part was started; "
            f"start with: velocity prep --out {request.place} --part 0/N ..., and so on up to N - 1"
        )
    with hold_whole(out):
        refuse_lost_version(out)
        _, plan = read_plan(plan_path(out))
        if (out / MANIFEST).exists():
            say(f"{out}: this set is finished already; nothing was done")
            return read_manifest(out)
        clear(temporary_folder(out))
        finish_units(out)
        budget = Budget(plan.policy.max_documents, plan.policy.max_tokens)
        ledger = Ledger(out, plan.plan_id, range(len(plan.units)), budget)
        if not ledger.is_complete:
            undone = ledger.undone
            raise ValueError(
                f"{out}: {len(undone):,} of {len(plan.units):,} units are not done "
                f"({list_numbers(undone)}); {advise(out, undone)}"
            )
        receipts = ledger.close()
        check_bytes(out, plan, receipts, workers, say)
        manifest = write_manifest(out, plan, receipts, workers, None)
        clear_leftovers(out)
    for line in summarize(manifest, out):
        say(line)
    return manifest


def check_bytes(out: Path, plan: Plan, receipts: Sequence[Receipt], workers: int, say: Say) -> None:
    """Hash every file again; ValueError naming those that do not match their receipts."""
    if hash_file(out / TOKENIZER) != plan.tokenizer.sha256:
        raise ValueError(
            f"{out / TOKENIZER}: no longer matches the plan; remove it and run any part again, "
            "which rewrites it"
        )
    num_bytes = sum(shard.num_bytes for receipt in receipts for shard in receipt.shards)
    size = format_bytes(num_bytes)
    say(f"all {len(plan.units):,} units are there; reading {size} of shards")
    damaged: dict[int, str] = {}
    with ThreadPoolExecutor(workers) as pool:
        for receipt, name in zip(
            receipts, pool.map(lambda receipt: find_damage(out, receipt), receipts), strict=True
        ):
            if name:
                damaged[receipt.unit] = name
    for unit in damaged:
        discard_unit(out, unit)
    if damaged:
        names = list(damaged.values())
        more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
        raise ValueError(
            f"{out}: {', '.join(names[:MAX_NAMED])}{more}: not the bytes that were written "
            f"(sha256); discarded, to be made again; {advise(out, list(damaged))}"
        )


def find_damage(out: Path, receipt: Receipt) -> str | None:
    """The first of a unit's files whose bytes are not those that were written, if any."""
    files = list_files(receipt)
    if receipt.near_sha256 and not decided_path(out).exists():
        files[near_path(out, receipt.unit).relative_to(out).as_posix()] = receipt.near_sha256
    return next((name for name, sha256 in files.items() if hash_file(out / name) != sha256), None)


def advise(out: Path, units: list[int]) -> str:
    """What to run again to make these units."""
    parts = find_parts(out)
    if not parts:
        return "run the same velocity prep command again"
    count = parts[-1].count
    numbers = sorted({unit % count for unit in units})
    return (
        f"of the {count} parts, run again {list_numbers(numbers)} "
        f"(sbatch --array={','.join(find_ranges(numbers))}), then --finish"
    )


def list_numbers(numbers: list[int]) -> str:
    """Numbers as ranges for a message, cut short after MAX_NAMED."""
    ranges = list(find_ranges(numbers))
    return ", ".join(ranges[:MAX_NAMED]) + (", ..." if len(ranges) > MAX_NAMED else "")


def find_ranges(numbers: list[int]) -> Iterator[str]:
    """Ascending numbers as ranges.

    >>> list(find_ranges([0, 2, 3, 4, 9]))
    ['0', '2-4', '9']
    """
    start = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            first, last = numbers[start], numbers[place - 1]
            yield str(first) if first == last else f"{first}-{last}"
            start = place
