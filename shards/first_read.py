"""Checks each MiB of the shards the first time a window is read from it.

Training reads windows at random offsets, for weeks; a disk or a copy that flips bits would be
trained on unseen. The sidecars have a checksum of each MiB of the .bin, taken when it was written.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.format import Shard
from shards.rows import read_block_checksums
from shards.screen.names import advise_verify
from shards.sidecar import BLOCK_BYTES
from shards.widths import Tokens


class FirstReads:
    """Knows which blocks of a split's shards were compared with their checksums.

    A set of 600 G tokens has 1.1 million blocks: a byte each for what was read, four for the
    checksums of the shards that were.

    Raises ValueError if a sidecar is missing.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self.folder = folder
        self.shards = shards
        self.unread = [np.ones(-(-s.num_bytes // BLOCK_BYTES), np.bool_) for s in shards]
        self.checksums: dict[int, npt.NDArray[np.uint32]] = {}
        for shard in shards:
            if not (folder / shard.sidecar).is_file():
                raise ValueError(
                    f"{folder / shard.sidecar}: is missing, so {shard.name} cannot be checked as "
                    "it is read; restore it, or train unchecked with data.verify=off"
                )

    def check(self, index: int, tokens: Tokens, start: int, stop: int) -> None:
        """Compare the blocks of shard `index` that hold tokens `start` to `stop`, unless they were.

        `tokens` are all of the shard's. Raises ValueError, naming file and place, if a checksum is
        not the one taken when the block was written.
        """
        block_tokens = BLOCK_BYTES // tokens.itemsize
        first, last = start // block_tokens, -(-stop // block_tokens)
        unread = self.unread[index]
        if not unread[first:last].any():
            return
        expected = self._load_checksums(index)
        for block in (first + np.flatnonzero(unread[first:last])).tolist():
            place = slice(block * block_tokens, (block + 1) * block_tokens)
            if zlib.crc32(tokens[place].data) != expected[block]:
                raise ValueError(
                    f"{self.folder / self.shards[index].name}: damaged in tokens {place.start:,} "
                    f"to {min(place.stop, len(tokens)):,}: their checksum is not the one taken "
                    "when they were written; "
                    f"{advise_verify(self.folder)}"
                )
            unread[block] = False

    def _load_checksums(self, index: int) -> npt.NDArray[np.uint32]:
        checksums = self.checksums.get(index)
        if checksums is None:
            shard = self.shards[index]
            checksums = np.array(read_block_checksums(self.folder, shard), np.uint32)
            if len(checksums) != len(self.unread[index]):
                raise ValueError(
                    f"{self.folder / shard.sidecar}: its checksums of {shard.name} are missing or "
                    "damaged; restore it, or train unchecked with data.verify=off"
                )
            self.checksums[index] = checksums
        return checksums
