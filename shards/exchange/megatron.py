"""Megatron's indexed data set: PREFIX.bin holds token ids, PREFIX.idx says where documents are.

PREFIX.idx, little-endian, without padding (S sequences, D document boundaries):

    9 bytes   "MMIDIDX" and two zeros
    uint64    version, 1
    uint8     the ids' type: 4 int32, 5 int64, 8 uint16
    uint64    S
    uint64    D: the number of documents, plus 1
    int32 S   tokens in each sequence
    int64 S   where each sequence begins in PREFIX.bin, in bytes
    int64 D   the first sequence of each document, and S at the end
"""

import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.format import Int64

MAGIC = b"MMIDIDX\0\0"
VERSION = 1
# Magic, version, type of the ids, S, D.
HEADER = struct.Struct("<9sQBQQ")
# Megatron's codes for the types that can hold a set's ids.
DTYPES: dict[int, np.dtype[Any]] = {4: np.dtype("<i4"), 5: np.dtype("<i8"), 8: np.dtype("<u2")}
# The code that ids of so many bytes get: Megatron has no uint32, and no id needs its top bit.
CODES = {2: 8, 4: 4}
OTHER_DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    6: "float64",
    7: "float32",
}

# Sequences checked at a time.
BLOCK_SEQUENCES = 1 << 20


@dataclass(frozen=True)
class Index:
    """A checked .idx, with its three lists memory-mapped."""

    dtype: np.dtype[Any]
    sizes: npt.NDArray[np.int32]
    pointers: Int64
    documents: Int64

    @property
    def num_tokens(self) -> int:
        """The number of tokens in the .bin, by the index."""
        if not len(self.sizes):
            return 0
        return int(self.pointers[-1]) // self.dtype.itemsize + int(self.sizes[-1])

    @property
    def num_documents(self) -> int:
        """The number of documents in the .bin, by the index."""
        return len(self.documents) - 1

    def document_bounds(self, first: int, last: int) -> Int64:
        """Where documents [first, last) begin, and where the last one ends, in tokens."""
        sequences = np.asarray(self.documents[first : last + 1])
        bounds = np.full(len(sequences), self.num_tokens, np.int64)
        inside = sequences < len(self.sizes)
        bounds[inside] = self.pointers[sequences[inside]] // self.dtype.itemsize
        return bounds


def read_index(path: Path, bin_path: Path) -> Index:
    """Map an .idx; check that it is consistent and agrees with the size of its .bin.

    Raises ValueError that names the file and what is wrong with it.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        raw = file.read(HEADER.size)
    if not raw.startswith(MAGIC) or len(raw) < HEADER.size:
        old = raw.startswith(b"TNTIDX")
        raise ValueError(
            f"{path}: begins with {raw[:9]!r}{', an index in the old format' if old else ''}; "
            f"expected {MAGIC!r}, as Megatron's preprocess_data.py writes it"
        )
    _, version, code, num_sequences, num_bounds = HEADER.unpack(raw)
    if version != VERSION:
        raise ValueError(f"{path}: has version {version}; expected {VERSION}")
    if code not in DTYPES:
        name = OTHER_DTYPES.get(code, "unknown")
        raise ValueError(
            f"{path}: its ids have type {code} ({name}); expected 8 (uint16), 4 (int32) or "
            "5 (int64), which can hold GPT-2's"
        )
    expected = HEADER.size + 12 * num_sequences + 8 * num_bounds
    # Multimodal sets have one more byte per sequence, which text alone does not need.
    if size not in (expected, expected + num_sequences):
        raise ValueError(
            f"{path}: has {size:,} bytes; expected {expected:,} for the {num_sequences:,} "
            f"sequences and {num_bounds:,} document bounds in its header: cut short or damaged"
        )
    index = map_index(path, DTYPES[code], num_sequences, num_bounds)
    check_index(path, index)
    found, expected = bin_path.stat().st_size, index.num_tokens * index.dtype.itemsize
    if found != expected:
        raise ValueError(
            f"{bin_path}: has {found:,} bytes; expected {expected:,}, by {path.name}: "
            "it is cut short, or belongs to another index"
        )
    return index


def map_index(path: Path, dtype: np.dtype[Any], num_sequences: int, num_bounds: int) -> Index:
    """The three lists of an .idx, memory-mapped, as they may be larger than memory."""
    raw = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    stops = np.cumsum([HEADER.size, 4 * num_sequences, 8 * num_sequences, 8 * num_bounds])
    parts = [raw[start:stop] for start, stop in pairwise(stops.tolist())]
    return Index(dtype, parts[0].view("<i4"), parts[1].view("<i8"), parts[2].view("<i8"))


def check_index(path: Path, index: Index) -> None:
    """ValueError if sequences are not back to back, or documents are not."""
    position = 0
    for start in range(0, len(index.sizes), BLOCK_SEQUENCES):
        sizes = index.sizes[start : start + BLOCK_SEQUENCES].astype(np.int64)
        pointers = index.pointers[start : start + BLOCK_SEQUENCES]
        ends = position + np.cumsum(sizes) * index.dtype.itemsize
        begins = ends - sizes * index.dtype.itemsize
        wrong = np.flatnonzero((sizes < 0) | (pointers != begins))
        if len(wrong):
            at = int(wrong[0])
            raise ValueError(
                f"{path}: says that sequence {start + at:,} has {int(sizes[at]):,} tokens from "
                f"byte {int(pointers[at]):,}; expected byte {int(begins[at]):,}, where the "
                "previous one ends"
            )
        position = int(ends[-1])
    before = 0
    for start in range(0, len(index.documents), BLOCK_SEQUENCES):
        bounds = np.concatenate([[before], index.documents[start : start + BLOCK_SEQUENCES]])
        if (np.diff(bounds) < 0).any():
            raise ValueError(f"{path}: its document bounds decrease; the file is damaged")
        before = int(bounds[-1])
    if not len(index.documents) or int(index.documents[0]) != 0 or before != len(index.sizes):
        raise ValueError(
            f"{path}: its document bounds do not go from 0 to {len(index.sizes):,}, the number of "
            "its sequences; the file is damaged, or was not written to the end"
        )
