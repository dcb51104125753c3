"""Transfers many files at once: threads, a progress line, retries, and how they stop."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TextIO, TypeVar

from shards.exchange.storage import StorageError
from shards.screen.lines import ScreenLine, format_bytes, format_seconds

T = TypeVar("T")

MAX_ATTEMPTS = 5
MAX_WORKERS = 1024
FIRST_WAIT_SECONDS = 1.0
POLL_SECONDS = 0.2


class Stopped(Exception):
    """Raised in a transfer when another one has failed, so that this one is given up."""


class Meter:
    """The progress of a transfer: files and bytes, counted by all threads, drawn by one."""

    def __init__(self, num_files: int, num_bytes: int, stream: TextIO | None = None) -> None:
        self.num_files = num_files
        self.num_bytes = num_bytes
        self.line = ScreenLine(stream)
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.files_done = self.bytes_done = self.bytes_moved = 0

    def add(self, num_bytes: int, moved: bool = True) -> None:
        """Count bytes as done; `moved`: in this run, not an earlier one. Raises Stopped."""
        if self.stopping.is_set():
            raise Stopped
        with self.lock:
            self.bytes_done += num_bytes
            self.bytes_moved += num_bytes if moved else 0

    def take_back(self, num_bytes: int) -> None:
        """Uncount bytes that were wrong or will be sent again."""
        with self.lock:
            self.bytes_done -= num_bytes

    def pause(self, seconds: float) -> None:
        """Wait; raises Stopped as soon as the transfer is stopped."""
        if self.stopping.wait(seconds):
            raise Stopped

    def end_file(self) -> None:
        """Count a file as done."""
        with self.lock:
            self.files_done += 1

    def describe(self, seconds: float) -> str:
        """The progress line after `seconds`."""
        share = min(self.bytes_done / max(self.num_bytes, 1), 1.0)
        speed = self.bytes_moved / max(seconds, 1e-3)
        left = (self.num_bytes - self.bytes_done) / speed if speed else 0
        return (
            f"{share:4.0%}  {self.files_done:,} of {self.num_files:,} files, "
            f"{format_bytes(self.bytes_done)} of {format_bytes(self.num_bytes)}  "
            f"{format_bytes(speed)}/s  {format_seconds(max(left, 0))} left"
        )

    def draw(self) -> None:
        """Draw the line, if it is time to."""
        if self.line.is_due():
            self.line.draw(self.describe(self.line.seconds))

    def erase(self) -> None:
        """Wipe the line off a terminal."""
        self.line.clear()


def transfer_all(
    entries: Sequence[T], work: Callable[[T, Meter], str | None], meter: Meter, workers: int
) -> list[str]:
    """Call `work` on every entry, `workers` at a time; returns what it found wrong with them.

    An exception in one of them stops the others at their next piece, and is raised.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="transfer")
    pending: set[Future[str | None]] = set()
    faults: list[str] = []
    try:
        pending = {pool.submit(work, entry, meter) for entry in entries}
        while pending:
            done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                fault = future.result()
                meter.end_file()
                if fault is not None:
                    faults.append(fault)
            meter.draw()
    except BaseException:
        meter.stopping.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        meter.erase()
    return faults


def keep_trying(attempt: Callable[[], T], meter: Meter) -> T:
    """Call `attempt`; after a StorageError, try again with longer and longer waits."""
    seconds = FIRST_WAIT_SECONDS
    for _ in range(MAX_ATTEMPTS - 1):
        try:
            return attempt()
        except StorageError:
            meter.pause(seconds)
            seconds *= 3
    return attempt()


def check_workers(workers: int) -> None:
    """ValueError if the number of files at a time is not one that makes sense."""
    if not 1 <= workers <= MAX_WORKERS:
        raise ValueError(
            f"--workers is {workers!s:.60}; expected a number from 1 to {MAX_WORKERS:,}"
        )
