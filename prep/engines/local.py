"""Units on this machine's cores: one process per worker, sharing nothing but their counters.

A worker that is killed is replaced and its unit is done again; the others carry on. A worker whose
parent is gone exits. (concurrent.futures' pool was tried: it can hang when a worker dies
while another is being started.)
"""

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess

from prep.engines.contract import (
    MAX_ATTEMPTS,
    NUM_COUNTERS,
    Counters,
    Engine,
    NextJob,
    Tick,
    flatten,
    keep_to_one_core,
    make_report,
)
from prep.request import Request
from prep.units.receipts import Receipt
from prep.units.work import UnitJob, process_unit

POLL_SECONDS = 0.2


def start(request: Request) -> Engine:
    """The engine that works in processes on this machine."""
    workers = request.workers or count_cores()
    return Engine(partial(run_jobs, workers=workers), workers)


def count_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_jobs(next_job: NextJob, workers: int, num_units: int, tick: Tick) -> Iterator[Receipt]:
    """Do the jobs in `workers` processes; one worker works in this process."""
    if workers == 1:
        yield from run_inline(next_job, num_units, tick)
    else:
        yield from run_pool(next_job, workers, num_units, tick)


def run_inline(next_job: NextJob, num_units: int, tick: Tick) -> Iterator[Receipt]:
    """Do the jobs one after another in this process."""
    counters = [0] * (NUM_COUNTERS * num_units)
    while (job := next_job(set())) is not None:
        yield process_unit(job, make_report(counters, job.number, tick))


def run_pool(next_job: NextJob, workers: int, num_units: int, tick: Tick) -> Iterator[Receipt]:
    """Do the jobs in worker processes, as many at a time as there are workers."""
    context = multiprocessing.get_context("spawn")  # Safe with threads, the same on all systems.
    counters = context.RawArray("q", NUM_COUNTERS * num_units)
    busy: list[Worker] = []
    idle: list[Worker] = []
    lost_jobs: list[UnitJob] = []
    losses: Counter[int] = Counter()
    try:
        while True:
            while len(busy) < workers:
                in_work = {worker.job.number for worker in busy}
                job = lost_jobs.pop() if lost_jobs else next_job(in_work)
                if job is None:
                    break
                worker = idle.pop() if idle else start_worker(context, counters, job)
                worker.assign(job)
                busy.append(worker)
            if not busy:
                return
            ready = wait([worker.connection for worker in busy], POLL_SECONDS)
            tick(counters)
            for worker in [worker for worker in busy if worker.connection in ready]:
                receipt = worker.receive()
                busy.remove(worker)
                if receipt is None:
                    count_loss(losses, worker.job, worker.process.exitcode)
                    lost_jobs.append(worker.job)
                else:
                    idle.append(worker)
                    yield receipt
    finally:
        for worker in busy + idle:
            worker.stop()


@dataclass
class Worker:
    """A worker process as its parent sees it, and its job."""

    process: SpawnProcess
    connection: Connection
    job: UnitJob

    def assign(self, job: UnitJob) -> None:
        """Give it its next job."""
        self.job = job
        with suppress(OSError):  # If it was killed between two jobs, receive() will tell.
            self.connection.send(job)

    def receive(self) -> Receipt | None:
        """Its job's receipt; None if it died. Raises what the job raised."""
        try:
            result = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return None
        if isinstance(result, Exception):
            raise result
        assert isinstance(result, Receipt)
        return result

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.process.terminate()
        self.process.join()


def start_worker(context: SpawnContext, counters: Counters, job: UnitJob) -> Worker:
    """Start a worker process; its first job is yet to be sent."""
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, counters), daemon=True)
    process.start()
    theirs.close()  # So that the worker's death is seen as the end of the connection.
    return Worker(process, ours, job)


def count_loss(losses: Counter[int], job: UnitJob, exit_code: int | None) -> None:
    """Note that a worker died during a job; ValueError once MAX_ATTEMPTS have."""
    losses[job.number] += 1
    if losses[job.number] == MAX_ATTEMPTS:
        raise ValueError(
            f"{job.pieces[0].name}: {MAX_ATTEMPTS} workers in a row {describe_death(exit_code)}; "
            "what is committed stays"
        )


def describe_death(exit_code: int | None) -> str:
    """How the workers ended, judging by the last one, the likely cause, and what to do."""
    if exit_code is None or exit_code >= 0:
        return (
            f"ended with exit code {exit_code} while working on this file; "
            "their output is above, and --workers 1 does without them"
        )
    if exit_code == -9:
        return (
            "were killed while working on this file, most likely for lack of memory; "
            "try again with fewer --workers"
        )
    name = signal.strsignal(-exit_code)
    return f"died while working on this file ({name}); leave the file out, or try --workers 1"


def work(connection: Connection, counters: Counters) -> None:
    """A worker process: do jobs and send their receipts, or what went wrong."""
    # Ctrl-C reaches every process of the terminal; only the parent decides what happens next.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_to_one_core()
    threading.Thread(target=exit_with_parent, daemon=True).start()
    while True:
        job = connection.recv()
        try:
            connection.send(process_unit(job, make_report(counters, job.number)))
        except Exception as error:
            connection.send(error if isinstance(error, ValueError | OSError) else flatten(error))


def exit_with_parent() -> None:
    """End this process when its parent has died, so that no orphan keeps writing."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
