"""What an engine is given and what it owes: jobs, receipts, counters."""

import os
from collections.abc import Callable, Iterator, MutableSequence
from typing import Protocol

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
