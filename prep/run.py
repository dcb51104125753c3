"""`velocity prep`, from the request to the manifest.

prepare(request)
    plan        made, or found and compared             .prep/plan.json
    forecast    what it will need; refused if the disk is short
    units       done by the engine, each ending in its receipt
    manifest    written last
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from prep.budget import Budget
from prep.encoder import choose_encoder
from prep.engine import run_jobs
from prep.finish import summarize, write_manifest
from prep.forecast import check_disk, forecast_run, format_bytes, format_count
from prep.hub import HubDataset, resolve
from prep.ledger import Ledger
from prep.plan import (
    Plan,
    Policy,
    describe_difference,
    plan_hub_dataset,
    plan_local_files,
    stored_hub_dataset,
)
from prep.progress import Goal, ProgressLine
from prep.receipts import downloads_folder, temporary_folder, work_folder
from prep.tokenizer import END_OF_TEXT, build_gpt2_json
from prep.units import UnitJob
from shards.durable import hash_file, write_file
from shards.format import MANIFEST, TOKENIZER, Json, Manifest, load_json, read_manifest

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    out: Path
    policy: Policy
    # Local files, folders and globs; empty = take `dataset` from the Hub.
    inputs: tuple[str, ...] = ()
    dataset: str = "tiiuae/falcon-refinedweb"
    dataset_config: str | None = None
    split: str = "train"
    revision: str | None = None
    workers: int = 1
    # One of prep.encoder.ENCODERS; None = the fastest that is installed. Changes no byte.
    encoder: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"--workers is {self.workers}; expected at least 1")


def prepare(request: Request, say: Say) -> Manifest:
    """Make a set of shards in `request.out`, or go on with one; returns its manifest.

    Raises ValueError or OSError for what the user can mend; what was committed stays.
    """
    started = time.monotonic()
    for folder in (work_folder(request.out) / "units", temporary_folder(request.out)):
        folder.mkdir(parents=True, exist_ok=True)
    downloads_folder(request.out).mkdir(exist_ok=True)
    try:
        with FileLock(work_folder(request.out) / "lock", timeout=0):
            return prepare_locked(request, say, started)
    except Timeout:
        raise ValueError(
            f"{request.out}: another velocity prep is at work there; wait for it, or stop it"
        ) from None


def prepare_locked(request: Request, say: Say, started: float) -> Manifest:
    """`prepare`, as the only process in the folder."""
    clear_folder(temporary_folder(request.out))
    tokenizer_sha256 = write_tokenizer(request.out)
    plan = settle_plan(request, tokenizer_sha256, say)
    if (request.out / MANIFEST).exists():
        say(f"{request.out}: this set is finished already; nothing was done")
        return read_manifest(request.out)
    budget = Budget(plan.policy.max_documents, plan.policy.max_tokens)
    ledger = Ledger(request.out, plan.plan_id, len(plan.units), budget)
    announce(request, plan, ledger, say)
    run_units(request, plan, ledger)
    seconds = time.monotonic() - started
    manifest = write_manifest(request.out, plan, ledger.close(), request.workers, seconds)
    clear_leftovers(request.out)
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
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def write_tokenizer(out: Path) -> str:
    """Put tokenizer.json into the set; returns its sha256."""
    content = build_gpt2_json()
    path = out / TOKENIZER
    if not path.exists():
        write_file(path, content)
    elif path.read_text(encoding="utf-8") != content:
        raise ValueError(
            f"{path}: there is another tokenizer here than the one this velocity makes shards "
            "with; choose another --out"
        )
    return hash_file(path)


def settle_plan(request: Request, tokenizer_sha256: str, say: Say) -> Plan:
    """The plan of this folder: the stored one if the request still means it, else a new one."""
    path = work_folder(request.out) / "plan.json"
    # A plan under which nothing was done yet binds nobody: the next command may mend its options.
    has_begun = any((work_folder(request.out) / "units").iterdir())
    has_begun = has_begun or (request.out / MANIFEST).exists()
    stored = load_json(path)["content"] if path.exists() and has_begun else None
    plan = make_plan(request, tokenizer_sha256, stored, say)
    if stored is None:
        refuse_foreign_files(request.out)
        write_file(path, json.dumps({"plan_id": plan.plan_id, "content": plan.content}) + "\n")
    elif plan.content != stored:
        state = "a finished" if (request.out / MANIFEST).exists() else "an unfinished"
        raise ValueError(
            f"{request.out}: holds {state} set made with another plan: "
            f"{describe_difference(stored, plan.content)}; run the command it was made with, "
            "or choose another --out"
        )
    return plan


def make_plan(request: Request, tokenizer_sha256: str, stored: Json | None, say: Say) -> Plan:
    """What the request means now; a revision of the Hub stays the one that was pinned."""
    if request.inputs:
        return plan_local_files(request.inputs, request.policy, tokenizer_sha256)
    dataset = stored_hub_dataset(stored) if stored else None
    if dataset is None or not is_requested(dataset, request):
        say(f"asking the Hub for the files of {request.dataset}")
        dataset = resolve(request.dataset, request.dataset_config, request.split, request.revision)
    return plan_hub_dataset(dataset, request.policy, tokenizer_sha256)


def is_requested(dataset: HubDataset, request: Request) -> bool:
    """Whether a pinned dataset is the one that the request names."""
    wanted = (request.dataset, request.dataset_config, request.split, request.revision)
    found = (dataset.repo, dataset.config, dataset.split, dataset.requested_revision)
    return found == wanted


def refuse_foreign_files(out: Path) -> None:
    """Do not write over shards that no plan of ours made."""
    foreign = [path.name for path in sorted(out.glob("*.bin"))] + [
        name for name in (MANIFEST,) if (out / name).exists()
    ]
    if foreign:
        raise ValueError(
            f"{out / foreign[0]}: was not made by a plan in {work_folder(out)}; "
            "nothing is written over, so choose another --out"
        )


def announce(request: Request, plan: Plan, ledger: Ledger, say: Say) -> None:
    """Say what will be done and what it needs; refuse where the disk is short."""
    undone = [unit for unit in range(len(plan.units)) if unit not in ledger.receipts]
    forecast = forecast_run(plan, undone, request.workers)
    num_done = len(plan.units) - len(undone)
    origin = f"{plan.hub.repo} at {plan.hub.revision[:12]}" if plan.hub else "local files"
    say(
        f"{origin}: {len(plan.sources):,} files, "
        f"{format_bytes(sum(source.num_bytes for source in plan.sources))}, "
        f"about {format_bytes(plan.num_text_bytes)} of text, in {len(plan.units):,} units"
        + (f", {num_done:,} of them done" if num_done else "")
    )
    say(
        f"about {format_count(forecast.num_tokens)} tokens to make; "
        + check_disk(request.out, forecast)
    )


def run_units(request: Request, plan: Plan, ledger: Ledger) -> None:
    """Do the units that are not done."""
    encoder = choose_encoder(request.encoder)

    def next_job(in_work: set[int]) -> UnitJob | None:
        number = ledger.next_unit(in_work)
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
            plan.hub,
        )

    undone = [unit for unit in range(len(plan.units)) if unit not in ledger.receipts]
    total = sum(unit.num_bytes for unit in plan.units)
    share = sum(plan.units[unit].num_bytes for unit in undone) / max(total, 1)
    line = ProgressLine(Goal(int(plan.num_text_bytes * share), ledger.remaining.tokens))
    try:
        for receipt in run_jobs(next_job, request.workers, len(plan.units), line.tick):
            ledger.add(receipt)
            if ledger.is_complete:
                break
    finally:
        line.finish()


def count_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
