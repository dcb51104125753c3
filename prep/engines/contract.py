"""What an engine is given and what it owes: jobs, receipts, counters.

An engine is a file with a function `start(request)` that gives an `Engine`, and a line in
choose.py. Its `run` takes jobs from `next_job(units in work)` until that gives none, does them in
any order and on any machine, and yields their receipts. While a unit is in work, none may also mean
that the next one's files are still on their way: it asks again. Where a worker is lost it does the
job again; what a job raises, it raises.
"""

import os
from collections.abc import Callable, Iterator, MutableSequence
from dataclasses import dataclass
from typing import Protocol

from prep.engines.prefetch import MAX_THREADS, FetchFiles, fetch_files
from prep.units.receipts import Receipt
from prep.units.work import Report, UnitJob

MAX_ATTEMPTS = 3
# Counters of a unit: documents read, tokens written, bytes of text read. They are shared with the
# parent without a lock: each has one writer, and a reader that is late is no worse for it.
NUM_COUNTERS = 3
Counters = MutableSequence[int]
NextJob = Callable[[set[int]], UnitJob | None]
Tick = Callable[[Counters], None]


class RunJobs(Protocol):
    """An engine that is told where and how wide it works: yields the receipts of `next_job`'s jobs.

    `tick` is called with the counters of all units a few times a second.
    """

    def __call__(self, next_job: NextJob, *, num_units: int, tick: Tick) -> Iterator[Receipt]: ...


@dataclass(frozen=True)
class Engine:
    """What does the units and what fetches their files, and how many of each at a time."""

    run: RunJobs
    workers: int
    fetch: FetchFiles = fetch_files
    max_fetches: int = MAX_THREADS


def keep_to_one_core() -> None:
    """Let the encoders start no threads: each of N workers would start one for every core."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["FASTOKENS_BPE_THREADS"] = "1"


def flatten(error: Exception) -> Exception:
    """An error that survives the way to the parent, whatever it held."""
    return RuntimeError(f"{type(error).__name__}: {error}")


def make_report(counters: Counters, unit: int, tick: Tick | None = None) -> Report:
    """What a unit's work calls to say how far it is."""
    first = unit * NUM_COUNTERS

    def report(documents: int, tokens: int, text_bytes: int) -> None:
        counters[first], counters[first + 1], counters[first + 2] = documents, tokens, text_bytes
        if tick:
            tick(counters)

    return report
