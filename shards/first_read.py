"""Checks each MiB of the shards the first time a window is read from it.

Training reads windows at random offsets, for weeks; a disk or a copy that flips bits would be
trained on unseen. The sidecars have a checksum of each MiB of the .bin, taken when it was written.
"""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.files import ShardFile
from shards.format import Shard
from shards.rows import read_block_checksums
from shards.screen.names import advise_verify
from shards.sidecar import BLOCK_BYTES


class FirstReads:
    """Knows which blocks of a split's shards were compared with their checksums.

    A set of 600 G tokens has 1.1 million blocks: a byte each for what was read, four for the
    checksums of the shards that were.

    Raises ValueError if a sidecar is missing.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self.folder = folder
        self.shards = shards
        self.unread = [count_blocks(shard) * bytearray(b"\1") for shard in shards]
        self.checksums: dict[int, npt.NDArray[np.uint32]] = {}
        self.space = memoryview(bytearray(BLOCK_BYTES))
        # One listing: to ask for each of 11,000 files takes seconds on a disk in the network.
        there = set(os.listdir(folder))
        for shard in shards:
            if shard.sidecar not in there:
                raise ValueError(
                    f"{folder / shard.sidecar}: is missing, so {shard.name} cannot be checked as "
                    "it is read; restore it, or train unchecked with data.verify=off"
                )

    def read(self, index: int, file: ShardFile, out: memoryview, start: int) -> None:
        """Fill `out` with bytes from byte `start` of shard `index`, its open `file`.

        A block that was not compared yet is read whole, and what is handed out is what was
        compared. Raises ValueError, naming file and place, if its checksum is not the one taken
        when it was written.
        """
        unread = self.unread[index]
        while out:
            block, offset = divmod(start, BLOCK_BYTES)
            piece = out[: BLOCK_BYTES - offset]
            if unread[block]:
                piece[:] = self._check(index, file, block)[offset : offset + len(piece)]
            else:
                file.read(piece, start)
            out, start = out[len(piece) :], start + len(piece)

    def forget(self, index: int) -> None:
        """Compare a shard that was changed again, block by block."""
        self.unread[index] = count_blocks(self.shards[index]) * bytearray(b"\1")

    def _check(self, index: int, file: ShardFile, block: int) -> memoryview:
        """The bytes of a block, compared."""
        shard, start = self.shards[index], block * BLOCK_BYTES
        content = self.space[: shard.num_bytes - start]
        file.read(content, start)
        if zlib.crc32(content) != self._load_checksums(index)[block]:
            first, last = start, start + len(content)
            raise ValueError(
                f"{self.folder / shard.name}: damaged in tokens {first // shard.token_bytes:,} to "
                f"{last // shard.token_bytes:,}: their checksum is not the one taken when they "
                f"were written; {advise_verify(self.folder)}"
            )
        self.unread[index][block] = False
        return content

    def _load_checksums(self, index: int) -> npt.NDArray[np.uint32]:
        checksums = self.checksums.get(index)
        if checksums is None:
            shard = self.shards[index]
            checksums = np.array(read_block_checksums(self.folder, shard), np.uint32)
            if len(checksums) != count_blocks(shard):
                raise ValueError(
                    f"{self.folder / shard.sidecar}: its checksums of {shard.name} are missing or "
                    "damaged; restore it, or train unchecked with data.verify=off"
                )
            self.checksums[index] = checksums
        return checksums


def count_blocks(shard: Shard) -> int:
    """How many checksums a shard has."""
    return -(-shard.num_bytes // BLOCK_BYTES)
