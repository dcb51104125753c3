"""`velocity prep`, from the request to the manifest.

prepare(request)
    plan        made, or found and compared             .prep/plan.json
    forecast    what it will need; refused if the disk is too small
    units       done by the engine, each ending in its receipt
    manifest    written last
"""

import time
from contextlib import nullcontext

from prep.copies.cut import finish_units
from prep.engines.contract import Engine, choose_engine
from prep.engines.prefetch import prefetch_units
from prep.engines.progress import Goal, ProgressLine
from prep.manifest import summarize, write_manifest
from prep.planning.forecast import Forecast, check_disk, forecast_run
from prep.planning.plan import Plan
from prep.planning.settle import settle_plan
from prep.remote.places import describe_places
from prep.request import Request
from prep.tokenizer.exact import choose_encoder
from prep.units.budget import Budget
from prep.units.ledger import Ledger
from prep.units.receipts import has_receipt
from prep.units.work import UnitJob
from prep.units.workspace import clear_leftovers, hold_whole
from shards.disk.folders import clear
from shards.disk.layout import MANIFEST, TOKENIZER, downloads_folder, temporary_folder
from shards.format import Manifest, read_manifest
from shards.screen.lines import Say, format_bytes, format_count
from shards.tokenizer import read_tokenizer_json


def prepare(request: Request, say: Say) -> Manifest:
    """Make a set of shards in `request.out`, or resume one; returns its manifest.

    Raises ValueError or OSError for what the user can fix; what was committed stays.
    """
    started = time.monotonic()
    with hold_whole(request.out):
        return prepare_locked(request, say, started)


def prepare_locked(request: Request, say: Say, started: float) -> Manifest:
    """`prepare`, once the folder is locked: no other process works in it."""
    clear(temporary_folder(request.out))
    plan = settle_plan(request, say)
    if (request.out / MANIFEST).exists():
        say(f"{request.out}: this set is finished already; nothing was done")
        return read_manifest(request.out)
    finish_units(request.out)
    budget = Budget(plan.policy.max_documents, plan.policy.max_tokens)
    ledger = Ledger(request.out, plan.plan_id, range(len(plan.units)), budget)
    is_resumed = bool(ledger.receipts)
    workers = do_units(request, plan, ledger, say)
    seconds = None if is_resumed else time.monotonic() - started
    receipts = ledger.close()
    manifest = write_manifest(request.out, plan, receipts, workers, seconds, request.after)
    clear_leftovers(request.out)
    if request.after is None:
        for line in summarize(manifest, request.out):
            say(line)
    return manifest


def do_units(request: Request, plan: Plan, ledger: Ledger, say: Say) -> int:
    """Say what will be done, and do it; returns the number of workers."""
    engine = choose_engine(request)
    # All parts share one disk, so what is announced and checked is what they need together.
    undone, num_parts = ledger.undone, 1
    if request.part:
        undone = [unit for unit in range(len(plan.units)) if not has_receipt(request.out, unit)]
        num_parts = request.part.count
    before = read_manifest(request.after).shards if request.after else ()
    num_earlier = sum(shard.num_documents for shard in before)
    forecast = forecast_run(plan, undone, engine.workers, num_parts, num_earlier)
    announce(request, plan, undone, forecast, say)
    # Chats need the places of tokens in the text, which only the reference tells.
    wanted = "tokenizers" if plan.policy.chat else request.encoder
    encoder, reason = choose_encoder(wanted, read_tokenizer_json(request.out / TOKENIZER))
    if reason is not None:
        say(f"{reason}; {encoder} encodes instead: the same ids, but slower")
    run_units(request, plan, ledger, encoder, engine)
    return engine.workers


def announce(request: Request, plan: Plan, undone: list[int], forecast: Forecast, say: Say) -> None:
    """Say what will be done and what it needs; ValueError if the disk is too small."""
    num_done = len(plan.units) - len(undone)
    say(
        f"{name_origin(plan)}: {len(plan.sources):,} files"
        + (f" (a sample, {plan.policy.sample} of all)" if plan.policy.sample else "")
        + f", {format_bytes(sum(source.num_bytes for source in plan.sources))}, "
        f"about {format_bytes(plan.num_text_bytes)} of text, in {len(plan.units):,} units"
        + (f", {num_done:,} of them done" if num_done else "")
    )
    say(
        f"about {format_count(forecast.num_tokens)} tokens to make; "
        + check_disk(request.out, forecast)
    )


def name_origin(plan: Plan) -> str:
    """Where the documents come from, in a few words."""
    if plan.hub:
        return f"{plan.hub.repo} at {plan.hub.revision[:12]}"
    at_urls = [describe_places(plan.urls)] if plan.urls else []
    has_local = len(plan.sources) > len(plan.at_urls) or not at_urls
    return " and ".join([*(["local files"] if has_local else []), *at_urls])


def run_units(request: Request, plan: Plan, ledger: Ledger, encoder: str, engine: Engine) -> None:
    """Do the undone units with the engine, and add their receipts to the ledger."""
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
            plan.tokenizer,
            ledger.remaining,
            plan.remote_part(number),
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
