"""The sidecar of a .bin: train-00000.docs.parquet, one row a document."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.disk.durable import hash_file
from shards.format import Manifest, Shard

# The doc_hash of a blanked document.
BLANK_HASH = bytes(16)


Keys = npt.NDArray[np.uint64]

SIDECAR_SCHEMA = pa.schema(
    [
        ("start", pa.uint64()),  # in tokens, of this .bin
        ("num_tokens", pa.uint64()),  # <|endoftext|> included
        ("source_file", pa.string()),
        ("source_row", pa.uint64()),
        ("url", pa.string()),
        ("doc_hash", pa.binary(16)),  # the first half of the sha256 of the text's UTF-8
    ]
)
# What the writer is given of each document: all but where its tokens come to lie.
ROWS_SCHEMA = SIDECAR_SCHEMA.remove(0)
# Rows a row group: what trace reads to find one document. Also the unit of writing, so that
# the file's bytes do not depend on how the documents came.
ROW_GROUP_DOCUMENTS = 65_536
# A checksum for each MiB of a .bin lies in the sidecar's metadata, so verify can say where.
BLOCK_BYTES = 1 << 20
BLOCK_CHECKSUMS = b"crc32_per_mib"


class BlockChecksums:
    """crc32 of each MiB of a byte stream that comes in pieces of any size."""

    def __init__(self) -> None:
        self.checksums: list[int] = []
        self.current = 0
        self.filled = 0

    def update(self, view: memoryview) -> None:
        """Add the next bytes."""
        while view:
            piece = view[: BLOCK_BYTES - self.filled]
            self.current = zlib.crc32(piece, self.current)
            self.filled += len(piece)
            view = view[len(piece) :]
            if self.filled == BLOCK_BYTES:
                self._end_block()

    def finish(self) -> str:
        """The checksums, eight hexadecimal digits each, one after the other."""
        if self.filled:
            self._end_block()
        return "".join(f"{checksum:08x}" for checksum in self.checksums)

    def _end_block(self) -> None:
        self.checksums.append(self.current)
        self.current, self.filled = 0, 0


def count_tokens(rows: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """The tokens of each document, <|endoftext|> included."""
    sizes: npt.NDArray[np.int64] = rows.column("num_tokens").to_numpy().astype(np.int64)
    return sizes


def read_block_checksums(metadata: dict[bytes, Any]) -> list[int]:
    """The crc32 of each MiB of a .bin, from its sidecar's metadata."""
    digits = metadata[BLOCK_CHECKSUMS].decode("ascii")
    return [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]


def split_hashes(column: pa.Array) -> tuple[Keys, Keys]:
    """Both halves of each doc_hash; where both are 0, `velocity shards remove` took it out."""
    halves = np.frombuffer(column.buffers()[1], np.uint64)
    halves = halves[2 * column.offset :][: 2 * len(column)]
    return halves[::2], halves[1::2]


def mark_documents(rows: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Which rows are documents: all but those that were removed and kept their places."""
    first, rest = split_hashes(rows.column("doc_hash"))
    marks: npt.NDArray[np.bool_] = (first != 0) | (rest != 0)
    return marks


def check_sidecar(folder: Path, shard: Shard, sha256: str | None) -> None:
    """ValueError where a shard's sidecar is not the one that was written."""
    path = folder / shard.sidecar
    if not path.is_file() or (sha256 is not None and hash_file(path) != sha256):
        raise make_damage_error(folder, shard.sidecar)


def make_damage_error(folder: Path, name: str) -> ValueError:
    """What is said where a file that should be copied is damaged."""
    return ValueError(
        f"{folder / name}: is missing or damaged, and nothing was changed; "
        f"see what else is damaged with: velocity shards verify {folder}"
    )


def find_sidecar_hash(manifest: Manifest, shard: Shard) -> str | None:
    """The sha256 that a manifest has of a shard's sidecar."""
    value = manifest.environment.get("sidecar_sha256", {}).get(shard.sidecar)
    return None if value is None else str(value)
