"""The .bin files of a set, opened and read at a place; they are never mapped.

A file that is cut short under a map ends the process by SIGBUS, without a word; a read can tell.
And a map is never closed: a set may have more files than a process may have open.
"""

import errno
import os
import stat
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from shards.format import Shard
from shards.screen.names import advise_verify
from shards.widths import Tokens

# Of one split. Some systems allow a process 256 files; two splits leave half of them.
MOST_OPEN = 64
# A pipe in the place of a file is not waited for. Windows would translate ends of lines.
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

if hasattr(os, "preadv"):

    def read_at(handle: int, out: memoryview, start: int) -> int:
        """Read bytes from byte `start` of a file into `out`; how many, 0 at the file's end."""
        return os.preadv(handle, [out], start)

else:  # On Windows.

    def read_at(handle: int, out: memoryview, start: int) -> int:
        """Read bytes from byte `start` of a file into `out`; how many, 0 at the file's end."""
        os.lseek(handle, start, os.SEEK_SET)
        content = os.read(handle, len(out))
        out[: len(content)] = content
        return len(content)


class ShardFile:
    """One .bin, open until `close`, or until nobody has it any more.

    Raises ValueError, one line with its name, if it is missing, has not the size that the manifest
    says, or cannot be read.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.folder = folder
        self.shard = shard
        try:
            self.handle = os.open(folder / shard.name, FLAGS)
        except FileNotFoundError:
            raise self._make_size_error("is missing") from None
        except OSError as error:
            raise self._make_error("cannot be opened", error) from None
        self.close = weakref.finalize(self, os.close, self.handle)
        self.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def check(self) -> int:
        """When it was last written to, in nanoseconds; ValueError if its size is wrong now."""
        status = os.fstat(self.handle)
        if not stat.S_ISREG(status.st_mode):
            raise self._make_size_error("is missing")
        if status.st_size != self.shard.num_bytes:
            raise self._make_size_error(f"has {status.st_size:,} bytes")
        return status.st_mtime_ns

    def read(self, out: memoryview, start: int) -> None:
        """Fill `out`, bytes, with those from byte `start` on."""
        while (num_bytes := self._read_some(out, start)) < len(out):
            if num_bytes == 0:
                self.check()  # It says what the size is now.
                raise self._make_size_error(f"ended early, at byte {start:,}")
            out, start = out[num_bytes:], start + num_bytes

    def read_tokens(self, start: int, count: int) -> Tokens:
        """`count` ids from the shard's token `start`, in a new array."""
        tokens: Tokens = np.empty(count, self.shard.dtype)
        self.read(tokens.view(np.uint8).data, start * self.shard.token_bytes)
        return tokens

    def _read_some(self, out: memoryview, start: int) -> int:
        try:
            return read_at(self.handle, out, start)
        except OSError as error:
            raise self._make_error("cannot be read", error) from None

    def _make_size_error(self, state: str) -> ValueError:
        shard = self.shard
        return ValueError(
            f"{self.folder / shard.name} {state}; expected {shard.num_bytes:,} bytes, as "
            f"{shard.num_tokens:,} ids of {shard.dtype.name}; {advise_verify(self.folder)}"
        )

    def _make_error(self, state: str, error: OSError) -> ValueError:
        many = error.errno in (errno.EMFILE, errno.ENFILE)
        advice = (
            "allow more with: ulimit -n 4096"
            if many
            else "see that this machine can read it, or use another copy of the set"
        )
        return ValueError(f"{self.folder / self.shard.name}: {state} ({error.strerror}); {advice}")


class ShardFiles:
    """The .bin files of a split, by number; the MOST_OPEN last used are open."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self.folder = folder
        self.shards = shards
        # The one last used comes last.
        self.files: dict[int, ShardFile] = {}

    def open(self, index: int) -> ShardFile:
        """The .bin of shard `index`, to be used until the next call."""
        file = self.files.pop(index, None)
        if file is None:
            if len(self.files) == MOST_OPEN:
                self.files.pop(next(iter(self.files))).close()
            file = ShardFile(self.folder, self.shards[index])
        self.files[index] = file
        return file

    def close(self) -> None:
        """Close all; what is read later is opened again."""
        while self.files:
            self.files.popitem()[1].close()
