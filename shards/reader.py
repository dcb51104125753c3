"""A finished set opened for reading: each split is one long stream of tokens.

    shards = open_shards("shards/")
    train = shards.stream("train")
    train.read(start=10, count=4)          # four ids, across files if need be

Only what the manifest names is opened, lazily and memory-mapped.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.first_read import FirstReads
from shards.format import Int64, Manifest, Shard, read_manifest
from shards.screen.names import advise_verify
from shards.widths import Tokens, token_dtype


class TokenStream:
    """The tokens of one split, in manifest order, as if they were one array of `num_tokens`.

    Ids from `vocab_size` on are refused as damage. With `first_reads`, each MiB is compared with
    its checksum the first time it is read.
    """

    def __init__(
        self,
        folder: Path,
        shards: list[Shard],
        vocab_size: int,
        first_reads: FirstReads | None = None,
    ) -> None:
        self.folder = folder
        self.shards = shards
        self.vocab_size = vocab_size
        self.first_reads = first_reads
        self.dtype = shards[0].dtype if shards else token_dtype(2)
        # shard_starts[i] is the stream position of shard i's first token.
        sizes = [shard.num_tokens for shard in shards]
        self.shard_starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self.num_tokens = int(self.shard_starts[-1])
        self.maps: list[Tokens | None] = [None] * len(shards)

    def read(self, start: int, count: int) -> Tokens:
        """`count` ids from position `start`, copied into a new array.

        Raises ValueError if the stream does not hold all of them, or what is there is damaged.
        """
        window: Tokens = self.windows(np.array([start]), count)[0]
        return window

    def windows(self, starts: Int64, num_tokens: int) -> Tokens:
        """The windows of `num_tokens` ids that begin at `starts`: (len(starts), num_tokens)."""
        tokens: Tokens = np.empty((len(starts), num_tokens), self.dtype)
        for row, start in zip(tokens, starts.tolist(), strict=True):
            self._fill(row, start)
        if tokens.max(initial=0) >= self.vocab_size:
            raise self._make_id_error(tokens, starts)
        return tokens

    def _fill(self, out: Tokens, start: int) -> None:
        if start < 0 or start + len(out) > self.num_tokens:
            raise ValueError(
                f"{self.folder}: asked for tokens {start} to {start + len(out)}; "
                f"the split has {self.num_tokens}"
            )
        index = int(np.searchsorted(self.shard_starts, start, side="right")) - 1
        offset = start - int(self.shard_starts[index])
        filled = 0
        while filled < len(out):
            tokens = self._map(index)
            piece = tokens[offset : offset + len(out) - filled]
            if self.first_reads:
                self.first_reads.check(index, tokens, offset, offset + len(piece))
            out[filled : filled + len(piece)] = piece
            filled += len(piece)
            index, offset = index + 1, 0

    def _make_id_error(self, windows: Tokens, starts: Int64) -> ValueError:
        row, column = np.argwhere(windows >= self.vocab_size)[0].tolist()
        position = int(starts[row]) + column
        index = int(np.searchsorted(self.shard_starts, position, side="right")) - 1
        return ValueError(
            f"{self.folder / self.shards[index].name}: holds the id {windows[row, column]} as "
            f"token {position - int(self.shard_starts[index]):,}; the tokenizer has "
            f"{self.vocab_size:,} ids, so the file is damaged; "
            f"{advise_verify(self.folder)}"
        )

    def _map(self, index: int) -> Tokens:
        tokens = self.maps[index]
        if tokens is None:
            tokens = self.maps[index] = map_shard(self.folder, self.shards[index])
        return tokens


def map_shard(folder: Path, shard: Shard) -> Tokens:
    """Memory-map a .bin; ValueError if it is missing or has the wrong size."""
    path = folder / shard.name
    expected = shard.num_bytes
    found = path.stat().st_size if path.is_file() else None
    if found != expected:
        state = "is missing" if found is None else f"has {found:,} bytes"
        raise ValueError(
            f"{path} {state}; expected {expected:,} bytes, as {shard.num_tokens:,} ids of "
            f"{shard.dtype.name}; {advise_verify(folder)}"
        )
    # A plain array over the map: slices of a np.memmap take several times as long.
    return np.memmap(path, dtype=shard.dtype, mode="r").view(np.ndarray)


@dataclass(frozen=True)
class Shards:
    """A finished set in `folder`."""

    folder: Path
    manifest: Manifest

    def stream(self, split: str, checks_first_reads: bool = False) -> TokenStream:
        """The tokens of one split, on request compared with their checksums as they are read."""
        shards = self.manifest.split(split)
        first_reads = FirstReads(self.folder, shards) if checks_first_reads else None
        return TokenStream(self.folder, shards, self.manifest.vocab_size, first_reads)


def open_shards(folder: str | Path) -> Shards:
    """Open a finished set; ValueError with one line if the folder holds none."""
    folder = Path(folder)
    return Shards(folder, read_manifest(folder))


def make_damage_error(folder: Path, name: str) -> ValueError:
    """The error for a damaged file that was to be copied."""
    return ValueError(
        f"{folder / name}: is missing or damaged, and nothing was changed; {advise_verify(folder)}"
    )
