"""A .bin compressed for transfer: NAME.bin.zst, one zstd frame and the sha256 of its content.

The frame holds its content's size and checksum. After it comes a skippable frame, which every
zstd decoder passes over, with the sha256 of the content: so an object's last 40 bytes tell whether
it is whole, and which .bin it holds.
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
    """What was read is not a packed file, or is a damaged one."""


class Readable(Protocol):
    """Anything that bytes can be read from: a file, or an object's stream."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes; b"" at the end."""
        ...


def read_chunks(source: Readable) -> Iterator[bytes]:
    """The bytes of a stream in pieces of CHUNK_BYTES."""
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


def pack(path: Path, sha256: str) -> Iterator[bytes]:
    """A file's bytes, compressed, with the trailer; `sha256` is the file's, in hexadecimal."""
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

    A truncated stream ends early and without an error: compare size and sha256. Raises
    DamagedError if it is not zstd, or its checksum is wrong.
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
    """The same object, typed as a file: zstandard needs only its `read`."""
    return source  # type: ignore[return-value]
