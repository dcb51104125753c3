"""Files opened for reading, decompressed as they are read: gzip, bzip2, xz, zstd or plain."""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import zstandard

BUFFER_BYTES = 4 << 20
_READ_BYTES = 1 << 20
# The most that `zstd --long=31` makes; a decoder takes what the file's own window needs.
_MAX_WINDOW_BYTES = 1 << 31
# The most that a .xz may ask for; `xz -9` needs 65 MiB, and all of it is taken at once.
_MAX_XZ_BYTES = 1 << 30
# What is decoded after the last byte of a .zst; if it does not come out, the file is cut short.
_END = b"\0the end of the stream\0"
# With a checksum behind it: the bytes of the frame end otherwise than its content, as they are
# content themselves where a file is cut in what could not be compressed.
_END_FRAME = zstandard.ZstdCompressor(write_checksum=True).compress(_END)


def open_stream(path: Path, codec: str | None) -> BinaryIO:
    """Open a file for reading, decompressed as `codec` says: a value of COMPRESSIONS, or None.

    Several compressed files joined into one are read to the last. While it is read, OSError for
    what is damaged or cut short, and MemoryError for what takes more memory than there may be.
    """
    if codec is None:
        return open(path, "rb")
    begin = ZstdFrames if codec == "zstd" else partial(Members, packing=_MEMBERS[codec])
    return cast(BinaryIO, io.BufferedReader(begin(open(path, "rb")), BUFFER_BYTES))


def peek(file: BinaryIO, num_bytes: int) -> bytes:
    """The first bytes of a stream, which are read again; more than asked for, or fewer."""
    return cast(io.BufferedReader, file).peek(num_bytes)


class Decoder(io.RawIOBase):
    """Bytes decompressed from a file, a bounded number at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()


class Member(Protocol):
    """The decompressor of one member, as the modules bz2 and lzma have them."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class GzipMember:
    """A gzip member's, made from zlib's, which keeps no input itself."""

    def __init__(self) -> None:
        self.inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self.inner.eof

    @property
    def needs_input(self) -> bool:
        return not self.inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self.inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self.inner.decompress(self.inner.unconsumed_tail + data, max_length)


@dataclass(frozen=True)
class Packing:
    """A compression whose files are members, one after another."""

    begin: Callable[[], Member]
    # Zeros between members and after the last come in multiples of this; 0 = there are none.
    padding: int


_MEMBERS = {
    "gzip": Packing(GzipMember, 1),  # As tapes pad.
    "bzip2": Packing(bz2.BZ2Decompressor, 0),
    "xz": Packing(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _MAX_XZ_BYTES), 4),
}


class Members(Decoder):
    """The members of a compressed file, each of them whole, and nothing else between them."""

    def __init__(self, file: BinaryIO, packing: Packing) -> None:
        super().__init__(file)
        self.packing = packing
        self.member = packing.begin()
        self.has_begun = False
        # What was read from the file and not yet given to a member.
        self.ahead = b""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill some of a buffer; returns the number of bytes, 0 at the end."""
        while not self.member.eof or self._find_member():
            compressed = b""
            if self.member.needs_input:
                compressed, self.ahead = self.ahead or self.file.read(_READ_BYTES), b""
                if not compressed and not self.has_begun:
                    return 0
                if not compressed:
                    raise OSError("the compressed stream ends before its end")
            self.has_begun = True
            content = self._decompress(compressed, len(buffer))
            if self.member.eof:
                self.ahead = self.member.unused_data
            if content:
                buffer[: len(content)] = content
                return len(content)
        return 0

    def _decompress(self, compressed: bytes, size: int) -> bytes:
        try:
            return self.member.decompress(compressed, size)
        except zlib.error as error:
            raise OSError(str(error)) from None
        except lzma.LZMAError as error:
            if "memory" in str(error).lower():
                limit = f"{_MAX_XZ_BYTES >> 20} MiB"
                raise MemoryError(f"its dictionary takes more than {limit}") from None
            raise OSError(str(error)) from None

    def _find_member(self) -> bool:
        """Skip padding; returns whether another member follows."""
        num_zeros = 0
        while compressed := self.ahead or self.file.read(_READ_BYTES):
            self.ahead = compressed.lstrip(b"\0") if self.packing.padding else compressed
            num_zeros += len(compressed) - len(self.ahead)
            if self.ahead:
                self.member = self.packing.begin()
                break
        if num_zeros and num_zeros % self.packing.padding:
            raise OSError("zeros in the compressed stream that are no padding")
        return bool(self.ahead)


class ZstdFrames(Decoder):
    """The frames of a zstd file, one after another, whatever the window they were made with.

    The library ends where the file ends, as if the last frame were whole. So a frame of our own
    is decoded after it, which comes out only if that is so.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        self.frames = decompressor.stream_reader(
            _Joined(file, _END_FRAME),  # type: ignore[arg-type]
            read_size=_READ_BYTES,
            read_across_frames=True,
        )
        # The last bytes that were decoded; they may be the end.
        self.held = b""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill some of a buffer; returns the number of bytes, 0 at the end."""
        while content := self._decode(len(buffer)):
            before, self.held = self.held, (self.held + content[-len(_END) :])[-len(_END) :]
            ready = len(before) + len(content) - len(self.held)
            from_before = min(ready, len(before))
            buffer[:from_before] = before[:from_before]
            buffer[from_before:ready] = memoryview(content)[: ready - from_before]
            if ready:
                return ready
        if self.held != _END:
            raise OSError("the compressed stream ends before its end")
        return 0

    def _decode(self, size: int) -> bytes:
        try:
            return self.frames.read(size)
        except zstandard.ZstdError as error:
            if "memory" in str(error):
                raise MemoryError from None
            raise OSError(str(error)) from None


class _Joined:
    """A file with some bytes after its last one.

    They come together with the file's last bytes: libzstd takes a frame that a read begins with
    for a whole one, even if the bytes before it were the start of another.
    """

    def __init__(self, file: BinaryIO, end: bytes) -> None:
        self.file = file
        self.end = end
        self.ahead = file.read(_READ_BYTES)

    def read(self, size: int) -> bytes:
        found, self.ahead = self.ahead, self.file.read(_READ_BYTES)
        if not self.ahead:
            found, self.end = found + self.end, b""
        return found
