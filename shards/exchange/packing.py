"""A .bin on its way: NAME.bin.zst, one zstd frame and behind it what it must unpack to.

The frame holds its content's size and checksum. Behind it stands a skippable frame, which every
zstd decoder passes over, with the sha256 of the content: the last 40 bytes of an object tell
whether it is whole, and of which .bin.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

import zstandard

from shards.exchange.storage import CHUNK_BYTES

PACKED = ".zst"
LEVEL = 3
SKIPPABLE_MAGIC = 0x184D2A50
TRAILER_BYTES = 40


class DamagedError(ValueError):
    """What was read is no packed file, or a damaged one."""


class Readable(Protocol):
    """What bytes are read from: a file, or an object's stream."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        ...


def read_chunks(source: Readable) -> Iterator[bytes]:
    """The bytes of a stream in pieces of CHUNK_BYTES."""
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


def pack(path: Path, sha256: str) -> Iterator[bytes]:
    """The bytes of a file, compressed; `sha256` is the file's, in hexadecimal."""
    compressor = zstandard.ZstdCompressor(LEVEL, write_checksum=True, write_content_size=True)
    packer = compressor.compressobj(size=path.stat().st_size)
    with open(path, "rb") as file:
        for chunk in read_chunks(file):
            yield packer.compress(chunk)
    yield packer.flush()
    yield make_trailer(sha256)


def make_trailer(sha256: str) -> bytes:
    """The skippable frame at the end of a packed file.

    >>> len(make_trailer("00" * 32))
    40
    """
    return struct.pack("<II", SKIPPABLE_MAGIC, 32) + bytes.fromhex(sha256)


def unpack(source: Readable) -> Iterator[bytes]:
    """The content of a packed stream, in pieces of at most CHUNK_BYTES.

    A stream that is cut short ends early and without an error: compare size and sha256. Raises
    DamagedError where it is no zstd, or its checksum is wrong.
    """
    reader = zstandard.ZstdDecompressor().stream_reader(
        as_file(source), read_size=CHUNK_BYTES, read_across_frames=True
    )
    try:
        while chunk := reader.read(CHUNK_BYTES):
            yield chunk
    except zstandard.ZstdError as error:
        raise DamagedError(f"cannot be unpacked ({error})") from None


def as_file(source: Readable) -> IO[bytes]:
    """The same object: zstandard asks for no more than `read`."""
    return source  # type: ignore[return-value]
