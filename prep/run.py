"""`velocity prep`, from the request to the manifest.

prepare(request)
    plan        made, or found and compared             .prep/plan.json
    forecast    what it will need; refused if the disk is short
    units       done by the engine, each ending in its receipt
    manifest    written last
"""

import os
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prep.engines.local import RunJobs, run_jobs
from prep.engines.prefetch import MAX_THREADS, FetchFiles, fetch_files, prefetch_units
from prep.engines.progress import Goal, ProgressLine
from prep.manifest import summarize, write_manifest
from prep.planning.forecast import Forecast, check_disk, forecast_run
from prep.planning.plan import Plan
from prep.planning.settle import settle_plan
from prep.request import Request
from prep.text.copies import finish_units
from prep.text.encoder import ENCODERS, choose_encoder
from prep.text.gpt2 import END_OF_TEXT
from prep.units.budget import Budget
from prep.units.ledger import Ledger
from prep.units.receipts import downloads_folder, has_receipt, make_folders, temporary_folder
from prep.units.work import UnitJob
from prep.units.workspace import hold_whole
from shards.format import MANIFEST, Manifest, read_manifest
from shards.screen import Say, format_bytes, format_count


def prepare(request: Request, say: Say) -> Manifest:
    """Make a set of shards in `request.out`, or go on with one; returns its manifest.

    Raises ValueError or OSError for what the user can mend; what was committed stays.
    """
    started = time.monotonic()
    make_folders(request.out)
    with hold_whole(request.out):
        return prepare_locked(request, say, started)


def prepare_locked(request: Request, say: Say, started: float) -> Manifest:
    """`prepare`, as the only process in the folder."""
    clear_folder(temporary_folder(request.out))
    finish_units(request.out)
    plan = settle_plan(request, say)
    if (request.out / MANIFEST).exists():
        say(f"{request.out}: this set is finished already; nothing was done")
        return read_manifest(request.out)
    budget = Budget(plan.policy.max_documents, plan.policy.max_tokens)
    ledger = Ledger(request.out, plan.plan_id, range(len(plan.units)), budget)
    workers = do_units(request, plan, ledger, say)
    seconds = time.monotonic() - started
    receipts = ledger.close()
    manifest = write_manifest(request.out, plan, receipts, workers, seconds, request.after)
    clear_leftovers(request.out)
    if request.after is None:
        for line in summarize(manifest, request.out):
            say(line)
    return manifest


def clear_leftovers(out: Path) -> None:
    """Remove what workers left that were stopped because the set was full."""
    for folder in (temporary_folder(out), downloads_folder(out)):
        clear_folder(folder)


def clear_folder(folder: Path) -> None:
    """Remove all that lies in a folder of prep's own."""
    for leftover in folder.iterdir():
        remove(leftover)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # A download may be on its last breath there.
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Engine:
    """What does the units and what fetches their files, and how many of each at a time."""

    run: RunJobs
    workers: int
    fetch: FetchFiles = fetch_files
    max_fetches: int = MAX_THREADS


def do_units(request: Request, plan: Plan, ledger: Ledger, say: Say) -> int:
    """Say what will be done, and do it; returns how many workers did it."""
    engine = choose_engine(request)
    # Parts do their units on one disk: what is said and checked is what they need together.
    undone, num_parts = ledger.undone, 1
    if request.part:
        undone = [unit for unit in range(len(plan.units)) if not has_receipt(request.out, unit)]
        num_parts = request.part.count
    announce(request, plan, undone, forecast_run(plan, undone, engine.workers, num_parts), say)
    encoder = choose_encoder(request.encoder)
    if encoder != ENCODERS[0] and request.encoder is None:
        say(f"{ENCODERS[0]} is not installed; {encoder} encodes instead, the same ids, more slowly")
    run_units(request, plan, ledger, encoder, engine)
    return engine.workers


def choose_engine(request: Request) -> Engine:
    """What was asked for, ready to work."""
    if request.engine == "local":
        workers = request.workers or count_cores()
        return Engine(partial(run_jobs, workers=workers), workers)
    from prep.engines.ray_cluster import connect, fetch_by_task, run_tasks

    cores = connect(request.ray_address)
    workers = request.workers or cores
    return Engine(partial(run_tasks, workers=request.workers), workers, fetch_by_task, workers + 2)


def announce(request: Request, plan: Plan, undone: list[int], forecast: Forecast, say: Say) -> None:
    """Say what will be done and what it needs; refuse where the disk is short."""
    num_done = len(plan.units) - len(undone)
    origin = f"{plan.hub.repo} at {plan.hub.revision[:12]}" if plan.hub else "local files"
    say(
        f"{origin}: {len(plan.sources):,} files"
        + (f" (a sample, {plan.policy.sample} of all)" if plan.policy.sample else "")
        + f", {format_bytes(sum(source.num_bytes for source in plan.sources))}, "
        f"about {format_bytes(plan.num_text_bytes)} of text, in {len(plan.units):,} units"
        + (f", {num_done:,} of them done" if num_done else "")
    )
    say(
        f"about {format_count(forecast.num_tokens)} tokens to make; "
        + check_disk(request.out, forecast)
    )


def run_units(request: Request, plan: Plan, ledger: Ledger, encoder: str, engine: Engine) -> None:
    """Do the units that are not done."""
    prefetch = prefetch_units(
        plan,
        ledger,
        downloads_folder(request.out),
        forecast_run(plan, ledger.undone, engine.workers).units_on_disk,
        engine.fetch,
        engine.max_fetches,
    )

    def next_job(in_work: set[int]) -> UnitJob | None:
        number = prefetch.take(ledger, in_work) if prefetch else ledger.next_unit(in_work)
        if number is None:
            return None
        return UnitJob(
            number,
            plan.units[number].pieces,
            request.out,
            ledger.plan_id,
            plan.policy,
            encoder,
            END_OF_TEXT,
            ledger.remaining,
            plan.hub_part(number) if plan.hub else None,
        )

    total = sum(unit.num_bytes for unit in plan.units)
    share = sum(plan.units[unit].num_bytes for unit in ledger.undone) / max(total, 1)
    line = ProgressLine(Goal(int(plan.num_text_bytes * share), ledger.remaining.tokens))
    try:
        with prefetch or nullcontext():
            for receipt in engine.run(next_job, num_units=len(plan.units), tick=line.tick):
                ledger.add(receipt)
                if ledger.is_complete:
                    break
                if prefetch:
                    prefetch.release(receipt.unit)
    finally:
        line.finish()


def count_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
