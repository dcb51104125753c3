"""The alarm of a run: a note in the ranks' common store, which says who failed and why.

The first rank that writes it is the one that tells the user. All others end when they find it.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from threading import Thread
from typing import Protocol, TypeVar

from train.ranks.exits import DO_NOT_RESTART

# What is written in the store, and how many ranks have read it.
NOTE, READERS = "note", "readers"
# How long the store may take to answer, and how long the others may take to read the note.
STORE_SECONDS, READING_SECONDS = 5.0, 3.0

Result = TypeVar("Result")


class Store(Protocol):
    """What is needed of torch's store, so that nothing here loads torch."""

    def add(self, key: str, value: int, /) -> int:
        """Add to a number; returns the sum."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all of the keys are there."""

    def get(self, key: str, /) -> bytes:
        """The value of a key that is there."""

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        """Set a key that is not there, where "" is expected; returns what is there then."""


@dataclass(frozen=True)
class Note:
    """Which rank failed, why, and the exit code with which all of the run's processes end."""

    rank: int
    reason: str
    code: int
    # The rank that wrote the note; another one, if the failed rank could not.
    teller: int
    host: str = field(default_factory=platform.node)
    # The file that is the teller's standard error; who writes to the same need not repeat it.
    screen: str = field(default_factory=lambda: identify_screen())

    def __str__(self) -> str:
        if self.rank == 0 and self.code == DO_NOT_RESTART:
            return self.reason  # A mistake is the run's, not the rank's.
        return f"rank {self.rank} ({self.host}): {self.reason}"


class Alarm:
    """The note of one run; safe to use from any thread."""

    def __init__(self, store: Store, world_size: int) -> None:
        self.store = store
        self.world_size = world_size

    def ring(self, note: Note) -> Note | None:
        """Write the note, if there is none; the one that stands then. None = no answer."""
        text = json.dumps(asdict(note))
        standing = call_within(STORE_SECONDS, lambda: self.store.compare_set(NOTE, "", text))
        return None if standing is None else read_note(standing)

    def read(self) -> Note | None:
        """The note, or None if nothing is wrong; an exception if the store is gone."""
        return read_note(self.store.get(NOTE)) if self.store.check([NOTE]) else None

    def count_reader(self) -> None:
        """Say that this rank has read the note."""
        call_within(STORE_SECONDS, lambda: self.store.add(READERS, 1))

    def wait_for_readers(self, note: Note) -> None:
        """Wait until all others have read the note, or seem to be gone as well.

        With this process its side of every connection ends, and perhaps the store.
        """
        # The teller need not read it, nor can the rank that it tells of, which is gone.
        readers = self.world_size - len({note.teller, note.rank})
        deadline = time.monotonic() + READING_SECONDS
        while time.monotonic() < deadline:
            count = call_within(STORE_SECONDS, lambda: self.store.add(READERS, 0))
            if count is None or count >= readers:
                return
            time.sleep(0.05)


def read_note(text: bytes) -> Note:
    """The note that JSON stands for."""
    return Note(**json.loads(text))


def call_within(seconds: float, action: Callable[[], Result]) -> Result | None:
    """What `action` returns; None if it fails, or takes longer, as on a machine that is lost."""
    results: list[Result] = []

    def call() -> None:
        with suppress(Exception):
            results.append(action())

    thread = Thread(target=call, name="store", daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None


def identify_screen() -> str:
    """What tells one file, pipe or terminal behind standard error from another."""
    try:
        status = os.fstat(2)
    except OSError:
        return ""
    return f"{platform.node()} {status.st_dev} {status.st_ino}"
