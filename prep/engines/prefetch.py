"""Fetches files from the Hub, and from URLs, while others are being encoded.

A few threads fetch the units' files in plan order, and a unit goes to a worker when its files are
there. At most `max_units` units have files on disk, including those in progress.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from prep.planning.plan import Plan
from prep.remote.download import download
from prep.remote.pinned import RemoteFile, remove_files
from prep.remote.retry import PATIENT, Retry
from prep.units.ledger import Ledger

# Downloads at a time on one machine.
MAX_THREADS = 16
POLL_SECONDS = 0.2
# How long the end of a run waits for its threads. One that is in the middle of a response may take
# longer; it ends with the process, and what it fetched is not used.
STOP_SECONDS = 1.0

# Fetches the files of a unit, waiting between tries as the Retry says.
Fetch = Callable[[int, Retry], None]
# Fetches files into a folder.
FetchFiles = Callable[[tuple[RemoteFile, ...], Path, Retry], None]


class StoppedError(Exception):
    """The run ended while a thread waited to try again."""


class Prefetch:
    """Units by the state of their files: wanted, on their way, here, or in progress."""

    def __init__(
        self, units: Iterable[int], fetch: Fetch, max_units: int, max_threads: int = MAX_THREADS
    ) -> None:
        assert max_units > 0
        self.fetch = fetch
        self.max_units = max_units
        self.wanted = deque(units)
        self.arriving: set[int] = set()
        self.ready: set[int] = set()
        self.in_work: set[int] = set()
        self.failure: Exception | None = None
        self.stopping = threading.Event()
        # Held whenever the state above is read or changed.
        self.changed = threading.Condition()
        self.retry = replace(PATIENT, pause=self._pause)
        num_threads = min(max_units, max_threads)
        self.threads = [
            threading.Thread(target=self._work, name=f"prefetch-{number}", daemon=True)
            for number in range(num_threads)
        ]

    def __enter__(self) -> "Prefetch":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self.changed:
            self.stopping.set()
            self.changed.notify_all()
        for thread in self.threads:
            thread.join(STOP_SECONDS / len(self.threads))

    def take(self, ledger: Ledger, in_work: set[int]) -> int | None:
        """The first undone unit whose files are here, for a worker.

        None if there is none yet, so that the engine asks again when something is done; but with
        nothing in progress it waits, and None is the end. A failure to fetch is raised when
        everything that is here is done.
        """
        with self.changed:
            while not ledger.is_complete:
                absent = self.arriving.union(self.wanted)
                unit = ledger.next_unit(in_work | absent)
                if unit in self.ready:
                    self.ready.remove(unit)
                    self.in_work.add(unit)
                    return unit
                if unit is not None:  # It was done before and must be done again.
                    self.wanted.appendleft(unit)
                    self.changed.notify_all()
                elif in_work or not absent:
                    break
                elif self.failure:
                    raise self.failure
                else:
                    self.changed.wait(POLL_SECONDS)
        return None

    def release(self, unit: int) -> None:
        """Note that a unit is done and its files are gone."""
        with self.changed:
            self.in_work.discard(unit)
            self.changed.notify_all()

    @property
    def num_on_disk(self) -> int:
        """How many units have files on disk, or are about to."""
        return len(self.arriving) + len(self.ready) + len(self.in_work)

    def _work(self) -> None:
        """A thread: fetch what is wanted next while there is room, until the end or a failure."""
        while (unit := self._begin()) is not None:
            failure: Exception | None = None
            try:
                self.fetch(unit, self.retry)
            except Exception as error:
                failure = error
            with self.changed:
                self.arriving.remove(unit)
                if failure is None:
                    self.ready.add(unit)
                else:
                    self.wanted.appendleft(unit)
                    self.failure = self.failure or failure
                self.changed.notify_all()

    def _begin(self) -> int | None:
        """The next unit to fetch, as soon as there is one and room for it."""
        with self.changed:
            while not (self.stopping.is_set() or self.failure):
                if self.wanted and self.num_on_disk < self.max_units:
                    unit = self.wanted.popleft()
                    self.arriving.add(unit)
                    return unit
                self.changed.wait()
        return None

    def _pause(self, seconds: float) -> None:
        if self.stopping.wait(seconds):
            raise StoppedError


def prefetch_units(
    plan: Plan,
    ledger: Ledger,
    folder: Path,
    max_units: int,
    fetch_files: FetchFiles,
    max_threads: int,
) -> Prefetch | None:
    """What fetches the files of the undone units; None for local files."""
    if not plan.fetches:
        return None
    if any(folder.iterdir()):  # A kill may leave files of a unit that is done.
        for unit in ledger.receipts:
            remove_files(plan.remote_part(unit), folder)
    return Prefetch(
        ledger.undone,
        lambda unit, retry: fetch_files(plan.remote_part(unit), folder, retry),
        max_units,
        max_threads,
    )


def fetch_files(files: tuple[RemoteFile, ...], folder: Path, retry: Retry) -> None:
    """Fetch files that are not yet in a folder."""
    for file in files:
        download(file, folder, retry=retry)
