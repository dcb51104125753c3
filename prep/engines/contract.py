"""What an engine is given and what it owes: jobs, receipts, counters.

An engine is a file with a function `start(request)` that returns an `Engine`, and a line of ENGINES
in prep/request.py. Its `run` takes jobs from `next_job(units in progress)` until that returns None,
does them in any order and on any machine, and yields their receipts. While a unit is in progress,
None may also mean that the next one's files are still on their way: the engine asks again. If a
worker is lost, the engine does its job again; what a job raises, the engine raises.
"""

import os
import traceback
from collections.abc import Callable, Iterator, MutableSequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from prep.engines.prefetch import MAX_THREADS, FetchFiles, fetch_files
from prep.request import ENGINES, Request
from prep.units.receipts import Receipt
from prep.units.work import Report, UnitJob

# Workers that may die during one job before the run is given up: it is not chance any more.
MAX_ATTEMPTS = 3
# Counters of a unit: documents read, tokens written, bytes of text read. They are shared with the
# parent without a lock: each has one writer, and a late read does no harm.
NUM_COUNTERS = 3
Counters = MutableSequence[int]
NextJob = Callable[[set[int]], UnitJob | None]
Tick = Callable[[Counters], None]


class RunJobs(Protocol):
    """Does the jobs that `next_job` gives, and yields their receipts.

    `tick` is called with the counters of all units a few times a second.
    """

    def __call__(self, next_job: NextJob, *, num_units: int, tick: Tick) -> Iterator[Receipt]: ...


@dataclass(frozen=True)
class Engine:
    """What does the units, what fetches their files, and how many of each at a time."""

    run: RunJobs
    workers: int
    fetch: FetchFiles = fetch_files
    max_fetches: int = MAX_THREADS


def choose_engine(request: Request) -> Engine:
    """The requested engine, ready to work; each is imported only when it is used."""
    engine = import_module(ENGINES[request.engine]).start(request)
    assert isinstance(engine, Engine)
    return engine


def keep_to_one_core() -> None:
    """Keep the encoders from starting threads: each of N workers would start one per core."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["FASTOKENS_BPE_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def flatten(error: Exception) -> Exception:
    """An error that can be sent to the parent, whatever the original holds, and its traceback."""
    flat = RuntimeError(f"{type(error).__name__}: {error}")
    flat.add_note("".join(traceback.format_exception(error)))
    return flat


def make_report(counters: Counters, unit: int, tick: Tick | None = None) -> Report:
    """What a unit's work calls to report how far it is."""
    first = unit * NUM_COUNTERS

    def report(documents: int, tokens: int, text_bytes: int) -> None:
        counters[first], counters[first + 1], counters[first + 2] = documents, tokens, text_bytes
        if tick:
            tick(counters)

    return report
