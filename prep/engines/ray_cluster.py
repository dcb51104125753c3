"""Units on the machines of a Ray cluster: plain tasks, one per unit.

Ray restarts a task whose worker or machine died; a unit that was committed before that is found by
its receipt. A task that runs twice at once, because a machine was only cut off, writes the same
bytes under the same names. Every machine must see the set's folder.
"""

import os
import platform
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from prep.engines.contract import (
    MAX_ATTEMPTS,
    NUM_COUNTERS,
    Engine,
    NextJob,
    Tick,
    flatten,
    keep_to_one_core,
)
from prep.engines.prefetch import fetch_files
from prep.remote.pinned import RemoteFile
from prep.remote.retry import PATIENT, Retry
from prep.request import Request
from prep.units.receipts import Receipt, read_receipt
from prep.units.work import UnitJob, process_unit
from shards.disk.layout import temporary_folder

POLL_SECONDS = 0.5
CONNECT_SECONDS = 10.0
STOP_SECONDS = 20.0
# Nothing large goes through Ray's object store; its default would take a third of the memory.
OBJECT_STORE_BYTES = 80 << 20


@dataclass(frozen=True)
class RunMark:
    """What a task finds on its machine if it shares the folder and runs the same code."""

    path: Path
    version: str


def start(request: Request) -> Engine:
    """The engine that works on the requested cluster."""
    cores = connect(request.ray_address)
    workers = request.workers or cores
    return Engine(partial(run_tasks, workers=request.workers), workers, fetch_by_task, workers + 2)


def connect(address: str | None) -> int:
    """Join the cluster at `address`, else at RAY_ADDRESS, else start one here; returns its cores.

    Raises ValueError if Ray is not installed or does not let this process in.
    """
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
    except ModuleNotFoundError:
        raise ValueError(
            "--engine ray needs Ray, which is not installed; pip install 'velocitylm[ray]'"
        ) from None
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"logging_level": "WARNING", "log_to_driver": False}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        check_address(address)
        ray.init(address=address, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ValueError(
            f"{address}: cannot join a Ray cluster there ({first_line(error)}); check that it "
            "is running, and that RAY_AUTH_MODE and RAY_AUTH_TOKEN are the same here as there"
        ) from error
    return count_cluster_cores()


def check_address(address: str) -> None:
    """OSError if nothing listens at host:port; Ray itself would keep waiting."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def count_cluster_cores() -> int:
    """The cores that all machines of the cluster have now."""
    import ray

    resources = cast(Any, ray).cluster_resources()
    return max(int(resources.get("CPU", 0)), 1)


def run_tasks(
    next_job: NextJob, workers: int | None, num_units: int, tick: Tick
) -> Iterator[Receipt]:
    """Do the jobs on the cluster, `workers` at a time; None: one per core, as machines come and go.

    The counters cover only the units that are done.
    """
    import ray

    task = ray.remote(do_unit).options(
        num_cpus=1, max_retries=MAX_ATTEMPTS - 1, scheduling_strategy="SPREAD"
    )
    counters = [0] * (NUM_COUNTERS * num_units)
    in_work: dict[Any, UnitJob] = {}
    mark: RunMark | None = None
    try:
        while True:
            limit = workers or count_cluster_cores()
            while len(in_work) < limit:
                job = next_job({job.number for job in in_work.values()})
                if job is None:
                    break
                job = replace(job, folder=job.folder.absolute())
                mark = mark or write_mark(job.folder)
                in_work[task.remote(job, mark)] = job
            if not in_work:
                return
            ready, _ = ray.wait(list(in_work), num_returns=1, timeout=POLL_SECONDS)
            for reference in ready:
                receipt = take_result(reference, in_work.pop(reference).pieces[0].name)
                assert isinstance(receipt, Receipt)
                count_unit(counters, receipt)
                yield receipt
            tick(counters)
    finally:
        stop_tasks(list(in_work))
        if mark:
            mark.path.unlink(missing_ok=True)
        ray.shutdown()


def fetch_by_task(files: tuple[RemoteFile, ...], folder: Path, retry: Retry) -> None:
    """Fetch files into `folder`, on any machine of the cluster.

    It takes no core from the units in progress. The task waits between tries by its own `Retry`.
    """
    import ray

    if not files:
        return
    task = ray.remote(fetch_unit).options(
        num_cpus=0, max_retries=MAX_ATTEMPTS - 1, scheduling_strategy="SPREAD"
    )
    take_result(task.remote(files, folder.absolute()), files[0].name)


def fetch_unit(files: tuple[RemoteFile, ...], folder: Path) -> Exception | None:
    """The task: fetch, and return what went wrong, which Ray would otherwise wrap."""
    try:
        check_folder(folder, folder)
        fetch_files(files, folder, PATIENT)
    except Exception as error:
        return error if isinstance(error, ValueError | OSError) else flatten(error)
    return None


def take_result(reference: Any, name: str) -> Any:
    """What a task returned; raises what its work raised, and ValueError for a lost task.

    `name` is the file that it was working on.
    """
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

    try:
        result = ray.get(reference)
    except (WorkerCrashedError, NodeDiedError, OutOfMemoryError) as error:
        raise ValueError(
            f"{name}: a worker or its machine died {MAX_ATTEMPTS} times while working "
            f"on this file, the last time: {first_line(error)}; if it ran out of memory, try "
            "again with fewer --workers"
        ) from None
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise ValueError(
            f"{name}: Ray could not run it ({first_line(error)}); every "
            "machine needs the same velocitylm with its packages; then run the same command again"
        ) from error
    if isinstance(result, Exception):
        raise result
    return result


def count_unit(counters: list[int], receipt: Receipt) -> None:
    """Enter a finished unit into the counters of the progress line."""
    audit, first = receipt.audit, receipt.unit * NUM_COUNTERS
    counters[first : first + NUM_COUNTERS] = (
        audit.documents_read,
        receipt.num_tokens,
        audit.text_bytes,
    )


def stop_tasks(references: list[Any]) -> None:
    """Cancel tasks, whatever they are doing, and wait until they have ended."""
    import ray

    for reference in references:
        ray.cancel(reference, force=True)
    if references:
        ray.wait(references, num_returns=len(references), timeout=STOP_SECONDS)


def write_mark(folder: Path) -> RunMark:
    """Leave a file of this run in the set's folder, for tasks to look for."""
    path = temporary_folder(folder) / f"ray-{secrets.token_hex(8)}"
    path.touch()
    return RunMark(path, metadata.version("velocitylm"))


def do_unit(job: UnitJob, mark: RunMark) -> Receipt | Exception:
    """The task: a unit's receipt, or what went wrong, which Ray would otherwise wrap."""
    keep_to_one_core()
    try:
        check_machine(job, mark)
        done = read_receipt(job.folder, job.number, job.plan_id)
        if done and done.budget == job.budget:  # A machine died after committing it.
            return done
        return process_unit(job, lambda documents, tokens, text_bytes: None)
    except Exception as error:
        return error if isinstance(error, ValueError | OSError) else flatten(error)


def check_machine(job: UnitJob, mark: RunMark) -> None:
    """ValueError if a task is on a machine where it cannot do its work."""
    version = metadata.version("velocitylm")
    if version != mark.version:
        raise ValueError(
            f"{platform.node()}: has velocitylm {version}, the command has {mark.version}; "
            "install the same version on all machines of the cluster"
        )
    check_folder(mark.path, job.folder)


def check_folder(inside: Path, folder: Path) -> None:
    """ValueError if this machine does not see what is in a folder."""
    if not inside.exists():
        raise ValueError(
            f"{platform.node()}: does not see {folder} of the machine that runs the command; "
            "give --out on a file system that all machines of the cluster share"
        )


def first_line(error: Exception) -> str:
    """The first sentence of a message of many lines.

    >>> first_line(RuntimeError("It died. This can happen.\\nSee the log."))
    'It died'
    """
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.partition(". ")[0].removesuffix(".")
