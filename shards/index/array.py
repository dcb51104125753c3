"""One array: the places of a shard's tokens, ordered by the tokens that follow each.

    places      uint32, little-endian: of each suffix, in order, its first token, counted from the
                array's own first
    checksums   uint32: the crc32 of each BLOCK places

Suffixes are compared token by token, by id; one that ends comes before one that goes on. So all
places of a span of tokens are next to each other. An end-of-document token ends no suffix, but
nothing that is looked for holds one, and an array begins and ends with a document: no match crosses
from one document into the next.

The order is made by libdivsufsort (Mori), over the ids as bytes, highest first: the order of the
suffixes that begin with an id is then that of the ids. It takes a byte of memory for each byte of
text and 4 more for its place, or 8 for 2 GiB and more: 10 bytes a token of a set of GPT-2's.
"""

import hashlib
import os
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.disk.durable import commit, naming, open_new, sync_file
from shards.files import FLAGS, read_at
from shards.format import Int64
from shards.index.contents import Digests, Entry
from shards.screen.names import quote
from shards.widths import Tokens

# Places of one checksum: 4 KiB, a page of most disks and systems.
BLOCK = 1024
CHECKSUM_BYTES = PLACE_BYTES = 4
PLACE = np.dtype("<u4")
MAX_TOKENS = 1 << 32
# Places handled at a time, a multiple of BLOCK.
CHUNK = 1 << 20
MAX_SHORT_BYTES = 2**31 - 1

Codes = npt.NDArray[np.uint8]


def count_code_bytes(vocab_size: int) -> int:
    """The bytes of an id as it is sorted.

    >>> count_code_bytes(256), count_code_bytes(65536), count_code_bytes(128256)
    (1, 2, 3)
    """
    return max(1, -(-(vocab_size - 1).bit_length() // 8))


def estimate_memory(num_tokens: int, vocab_size: int, token_bytes: int) -> int:
    """The bytes of memory that it takes to order so many tokens."""
    width = count_code_bytes(vocab_size)
    place = 4 if num_tokens * width <= MAX_SHORT_BYTES else 8
    return num_tokens * max(width * (1 + place), 2 * token_bytes + width) + CHUNK * 32


def count_blocks(num_tokens: int) -> int:
    """How many checksums an array has."""
    return -(-num_tokens // BLOCK)


def count_bytes(num_tokens: int) -> int:
    """The size of an array's file."""
    return num_tokens * PLACE_BYTES + count_blocks(num_tokens) * CHECKSUM_BYTES


def make_codes(tokens: Tokens, vocab_size: int) -> Codes:
    """Ids as bytes, the highest first, as many of each as the largest id of the set needs."""
    width, size = count_code_bytes(vocab_size), tokens.itemsize
    highest_first = tokens.astype(tokens.dtype.newbyteorder(">"))
    rows = highest_first.view(np.uint8).reshape(-1, size)[:, size - width :]
    return np.ascontiguousarray(rows).reshape(-1)


def order_suffixes(codes: Codes, width: int) -> npt.NDArray[np.signedinteger]:
    """The places of the suffixes of ids of `width` bytes each, in order: (tokens,)."""
    from pydivsufsort import divsufsort

    order: npt.NDArray[np.signedinteger] = divsufsort(codes)
    if width == 1:
        return order
    num_kept = 0
    for start in range(0, len(order), CHUNK):  # In place: a copy would take as much memory again.
        chunk = order[start : start + CHUNK]
        chunk = chunk[chunk % width == 0] // width
        order[num_kept : num_kept + len(chunk)] = chunk
        num_kept += len(chunk)
    return order[:num_kept]


def write_array(path: Path, order: npt.NDArray[np.signedinteger]) -> None:
    """Write an array's file durably: it is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    checksums: list[int] = []
    try:
        with naming(path), open_new(temporary) as file:
            for start in range(0, len(order), CHUNK):
                places = order[start : start + CHUNK].astype(PLACE)
                file.write(places.data)
                checksums += [
                    zlib.crc32(places[i : i + BLOCK].data) for i in range(0, len(places), BLOCK)
                ]
            file.write(np.array(checksums, PLACE).data)
            sync_file(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    commit(temporary, path)


def digest_array(path: Path, num_tokens: int) -> Digests | None:
    """The digests of an array's file; None if it is missing or not what its checksums say."""
    if not path.is_file() or path.stat().st_size != count_bytes(num_tokens):
        return None
    sha256, found = hashlib.sha256(), list[int]()
    with open(path, "rb") as file:
        for start in range(0, num_tokens, CHUNK):
            places = file.read(min(CHUNK, num_tokens - start) * PLACE_BYTES)
            sha256.update(places)
            view, step = memoryview(places), BLOCK * PLACE_BYTES
            found += [zlib.crc32(view[i : i + step]) for i in range(0, len(places), step)]
        checksums = file.read()
    sha256.update(checksums)
    if np.array(found, PLACE).tobytes() != checksums:
        return None
    return Digests(sha256.hexdigest(), hashlib.sha256(checksums).hexdigest())


def open_plainly(path: str, flags: int) -> int:
    """Open a file to read it; a pipe in its place is not waited for."""
    return os.open(path, FLAGS)


class PlacesFile:
    """An array's file, of which blocks are read, each compared with its checksum."""

    def __init__(self, folder: Path, entry: Entry, digests: Digests) -> None:
        self.folder = folder
        self.path = entry.path(folder)
        self.num_tokens = entry.num_tokens
        self.sha256 = digests.checksums
        self.checksums: npt.NDArray[np.uint32] | None = None

    def read(self, ranks: Int64) -> Int64:
        """The places with these ranks: (len(ranks),), from the array's first token on.

        Raises ValueError with one line if the file is missing or damaged.
        """
        blocks, inverse = np.unique(ranks // BLOCK, return_inverse=True)
        places = np.zeros((len(blocks), BLOCK), PLACE)
        try:
            with open(self.path, "rb", buffering=0, opener=open_plainly) as file:
                checksums = self._read_checksums(file.fileno())
                for row, block in zip(places, blocks.tolist(), strict=True):
                    content = row[: self.num_tokens - block * BLOCK].view(np.uint8).data
                    num_bytes = read_at(file.fileno(), content, block * BLOCK * PLACE_BYTES)
                    if num_bytes < len(content) or zlib.crc32(content) != checksums[block]:
                        raise self.make_error(f"damaged in its block {block:,}")
        except OSError as error:
            raise self.make_error(f"cannot be read ({error.strerror or error})") from None
        if int(places.max(initial=0)) >= self.num_tokens:  # Its checksums fit: it was made so.
            raise self.make_error(f"has places outside of its {self.num_tokens:,} tokens")
        return places[inverse, ranks % BLOCK].astype(np.int64)

    def _read_checksums(self, handle: int) -> npt.NDArray[np.uint32]:
        if self.checksums is None:
            with open(handle, "rb", closefd=False) as file:
                file.seek(self.num_tokens * PLACE_BYTES)
                content = file.read(count_blocks(self.num_tokens) * CHECKSUM_BYTES + 1)
            if hashlib.sha256(content).hexdigest() != self.sha256:
                raise self.make_error("its checksums are not those of index.json")
            self.checksums = np.frombuffer(content, PLACE).astype(np.uint32)
        return self.checksums

    def make_error(self, state: str) -> ValueError:
        """An error about this file."""
        return ValueError(
            f"{self.path}: {state}; what is damaged is made again with: "
            f"velocity shards index {quote(self.folder)}"
        )
