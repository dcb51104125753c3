"""Jobs on this machine's cores: one process a worker, none shared state but their counters.

A worker that is killed breaks its pool; the pool is made anew and the jobs that were in work are
done again. A worker whose parent is gone ends itself.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, MutableSequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_sentinel

from prep.receipts import Receipt
from prep.units import Report, UnitJob, process_unit

MAX_ATTEMPTS = 3
POLL_SECONDS = 0.2
# Counters of a unit: documents read, tokens written, bytes of text read.
NUM_COUNTERS = 3

# In a worker: the counters of all units, shared with the parent without a lock. Each unit has
# one writer, and a reader that sees a number half a second late is no worse for it.
counters: MutableSequence[int] = []

NextJob = Callable[[set[int]], UnitJob | None]
Tick = Callable[[MutableSequence[int]], None]


def run_jobs(next_job: NextJob, workers: int, num_units: int, tick: Tick) -> Iterator[Receipt]:
    """Do the jobs that `next_job(units in work)` gives until it gives none; yields receipts.

    `tick` is called with the counters a few times a second. One worker works in this process.
    """
    if workers == 1:
        yield from run_inline(next_job, num_units, tick)
    else:
        yield from run_pool(next_job, workers, num_units, tick)


def run_inline(next_job: NextJob, num_units: int, tick: Tick) -> Iterator[Receipt]:
    """Do the jobs one after the other in this process."""
    shared = [0] * (NUM_COUNTERS * num_units)
    while (job := next_job(set())) is not None:
        yield process_unit(job, make_report(shared, job.number, tick))


def run_pool(next_job: NextJob, workers: int, num_units: int, tick: Tick) -> Iterator[Receipt]:
    """Do the jobs in worker processes, as many at a time as there are workers."""
    context = multiprocessing.get_context("spawn")  # Safe with threads, the same on all systems.
    shared = context.RawArray("q", NUM_COUNTERS * num_units)
    attempts: dict[int, int] = {}
    retries: list[UnitJob] = []

    def make_pool() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, context, start_worker, (shared,))

    pool = make_pool()
    in_work: dict[Future[Receipt], UnitJob] = {}
    try:
        while True:
            while len(in_work) < workers:
                units = {job.number for job in in_work.values()}
                job = retries.pop() if retries else next_job(units)
                if job is None:
                    break
                in_work[pool.submit(run_in_worker, job)] = job
            if not in_work:
                return
            done, _ = wait(in_work, POLL_SECONDS, FIRST_COMPLETED)
            tick(shared)
            lost = []
            for future in done:
                job = in_work.pop(future)
                try:
                    receipt = future.result()
                except BrokenProcessPool:
                    lost.append(job)
                    continue
                yield receipt
            if lost:
                lost += in_work.values()
                in_work.clear()
                for job in lost:
                    count_attempt(attempts, job)
                retries += lost
                pool.shutdown(wait=True)
                pool = make_pool()
    finally:
        for process in multiprocessing.active_children():
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def count_attempt(attempts: dict[int, int], job: UnitJob) -> None:
    """Note that a worker was lost during a job; ValueError when that happens again and again."""
    attempts[job.number] = attempts.get(job.number, 0) + 1
    if attempts[job.number] == MAX_ATTEMPTS:
        raise ValueError(
            f"{job.pieces[0].name}: a worker was killed {MAX_ATTEMPTS} times while it was at this "
            "file, most likely for want of memory; try again with fewer --workers"
        )


def start_worker(shared: MutableSequence[int]) -> None:
    """Set up a worker process."""
    global counters
    counters = shared
    # Ctrl-C reaches every process of the terminal; the parent alone decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, daemon=True).start()


def exit_with_parent() -> None:
    """End this process when its parent has died, so that nobody writes for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_sentinel([parent.sentinel])
    os._exit(1)


def run_in_worker(job: UnitJob) -> Receipt:
    """Do a job in a worker process."""
    return process_unit(job, make_report(counters, job.number))


def make_report(shared: MutableSequence[int], unit: int, tick: Tick | None = None) -> Report:
    """What a unit's work calls to say how far it is."""
    first = unit * NUM_COUNTERS

    def report(documents: int, tokens: int, text_bytes: int) -> None:
        shared[first], shared[first + 1], shared[first + 2] = documents, tokens, text_bytes
        if tick:
            tick(shared)

    return report
