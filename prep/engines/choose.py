"""Which engine does the units: --engine, how many at a time, and what fetches their files."""

import os
from dataclasses import dataclass
from functools import partial

from prep.engines.contract import RunJobs
from prep.engines.local import run_jobs
from prep.engines.prefetch import MAX_THREADS, FetchFiles, fetch_files
from prep.request import Request


@dataclass(frozen=True)
class Engine:
    """What does the units and what fetches their files, and how many of each at a time."""

    run: RunJobs
    workers: int
    fetch: FetchFiles = fetch_files
    max_fetches: int = MAX_THREADS


def choose_engine(request: Request) -> Engine:
    """What was asked for, ready to work."""
    if request.engine == "local":
        workers = request.workers or count_cores()
        return Engine(partial(run_jobs, workers=workers), workers)
    from prep.engines.ray_cluster import connect, fetch_by_task, run_tasks

    cores = connect(request.ray_address)
    workers = request.workers or cores
    return Engine(partial(run_tasks, workers=request.workers), workers, fetch_by_task, workers + 2)


def count_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
