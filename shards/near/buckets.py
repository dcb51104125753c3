"""Entries dealt to files by the first bits of a hash, so that each file can be sorted alone.

All files are open at one time, up to MAX_FILES of the 1,024 that a process usually may have.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from shards.disk.durable import naming

MAX_FILES = 512
# About the most entries that a file gets, while there are no more than MAX_FILES.
FILE_ENTRIES = 1 << 21
# Entries dealt to the files at a time.
DEALT_ENTRIES = 1 << 20
Entries = np.ndarray[tuple[int], np.dtype[np.void]]


class Buckets:
    """Files in `folder`, for entries of one type; an entry's hash is its field `key`.

    Entries of one hash are all in one file, in the order in which they were added.
    """

    def __init__(self, folder: Path, num_entries: int, key: str) -> None:
        num_files = min(1 << (num_entries // FILE_ENTRIES).bit_length(), MAX_FILES)
        self.folder = folder
        self.key = key
        self.paths = [folder / f"hashes-{place:03d}" for place in range(num_files)]
        self.files: list[BinaryIO] = []
        self.waiting: list[Entries] = []

    def __enter__(self) -> "Buckets":
        with naming(self.folder):
            self.files = [open(path, "wb", buffering=1 << 17) for path in self.paths]  # noqa: SIM115
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with naming(self.folder):
            if kind is None:
                self._deal()
            for file in self.files:
                file.close()

    def add(self, entries: Entries) -> None:
        """Deal entries to the files, many at a time."""
        self.waiting.append(entries)
        if sum(map(len, self.waiting)) >= DEALT_ENTRIES:
            with naming(self.folder):
                self._deal()

    def _deal(self) -> None:
        if not self.waiting:
            return
        entries = np.concatenate(self.waiting)
        self.waiting = []
        num_bits = len(self.files).bit_length() - 1
        places = (entries[self.key] >> np.uint64(63 - num_bits)) >> np.uint64(1)
        entries = entries[np.argsort(places, kind="stable")]
        bounds = np.concatenate([[0], np.cumsum(np.bincount(places.astype(np.int64)))]).tolist()
        for file, start, stop in zip(self.files, bounds, bounds[1:], strict=False):
            file.write(entries[start:stop].tobytes())

    def take_files(self) -> Iterator[Path]:
        """The files, one after another, once all is dealt; each is removed when it was read."""
        for path in self.paths:
            yield path
            path.unlink()
