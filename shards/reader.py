"""A finished set opened for reading: each split is one long stream of tokens.

    shards = open_shards("shards/")
    train = shards.stream("train")
    train.read(start=10, count=4)          # four ids, across files if need be

Only what the manifest names is opened, when it is read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Lock

import numpy as np

from shards.files import ShardFiles
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
        self.files = ShardFiles(folder, shards)
        # When each shard that was read had last been written to.
        self.written: dict[int, int] = {}
        # A file that one thread reads must not be closed for another one's.
        self.lock = Lock()

    def read(self, start: int, count: int) -> Tokens:
        """`count` ids from position `start`, copied into a new array.

        Raises ValueError if the stream does not hold all of them, or what is there is damaged.
        """
        window: Tokens = self.windows(np.array([start]), count)[0]
        return window

    def windows(self, starts: Int64, num_tokens: int) -> Tokens:
        """The windows of `num_tokens` ids that begin at `starts`: (len(starts), num_tokens)."""
        tokens: Tokens = np.empty((len(starts), num_tokens), self.dtype)
        self.fill(tokens, starts)
        return tokens

    def fill(self, out: Tokens, starts: Int64) -> None:
        """Write to each row of `out` the window that begins at that place of `starts`.

        They are read in the order of their places. Raises as `read` does.
        """
        self._check_places(starts, out.shape[1])
        if out.size:
            with self.lock:
                self._read_windows(out, starts)
        if out.max(initial=0) >= self.vocab_size:
            raise self._make_id_error(out, starts)

    def close(self) -> None:
        """Close the files; what is read later opens them again."""
        with self.lock:
            self.files.close()

    def _read_windows(self, out: Tokens, starts: Int64) -> None:
        self._read_pieces(out, np.arange(len(starts) + 1) * out.shape[1], starts)

    def _locate(self, position: int) -> int:
        """Where in the shards' tokens a position is."""
        return position

    def _read_pieces(self, out: Tokens, bounds: Int64, places: Int64) -> None:
        """Fill `out`, from each of `bounds` to the next, with the shards' tokens from its place."""
        space = out.view(np.uint8).data.cast("B")
        edges = (bounds * out.itemsize).tolist()
        pieces = [space[begin:end] for begin, end in pairwise(edges)]
        order = np.argsort(places, kind="stable")
        places = places[order]
        indices = np.searchsorted(self.shard_starts, places, side="right") - 1
        offsets = (places - self.shard_starts[indices]) * self.dtype.itemsize
        opened, num_bytes = -1, 0
        for piece, index, offset in zip(
            order.tolist(), indices.tolist(), offsets.tolist(), strict=True
        ):
            rest = pieces[piece]
            while rest:
                if index != opened:
                    read, opened = self._open(index), index
                    num_bytes = self.shards[index].num_bytes
                if offset + len(rest) <= num_bytes:
                    read(rest, offset)
                    break
                read(rest[: num_bytes - offset], offset)
                rest, index, offset = rest[num_bytes - offset :], index + 1, 0

    def _open(self, index: int) -> Callable[[memoryview, int], None]:
        """What reads bytes of a shard, which is as it was when it was last read."""
        file = self.files.open(index)
        written = file.check()
        if self.written.setdefault(index, written) != written:
            if self.first_reads is None:
                raise ValueError(
                    f"{self.folder / self.shards[index].name}: was written to or replaced since "
                    f"it was first read; {advise_verify(self.folder)}"
                )
            # Where only its time was changed, the run may go on.
            self.first_reads.forget(index)
            self.written[index] = written
        return partial(self.first_reads.read, index, file) if self.first_reads else file.read

    def _check_places(self, starts: Int64, count: int) -> None:
        wrong = starts[(starts < 0) | (starts > self.num_tokens - count)]
        if len(wrong):
            raise ValueError(
                f"{self.folder}: asked for tokens {wrong[0]} to {wrong[0] + count}; "
                f"the split has {self.num_tokens}"
            )

    def _make_id_error(self, windows: Tokens, starts: Int64) -> ValueError:
        row, column = np.argwhere(windows >= self.vocab_size)[0].tolist()
        position = self._locate(int(starts[row]) + column)
        index = int(np.searchsorted(self.shard_starts, position, side="right")) - 1
        return ValueError(
            f"{self.folder / self.shards[index].name}: holds the id {windows[row, column]} as "
            f"token {position - int(self.shard_starts[index]):,}; the tokenizer has "
            f"{self.vocab_size:,} ids, so the file is damaged; "
            f"{advise_verify(self.folder)}"
        )


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
