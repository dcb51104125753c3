"""Files opened for reading, decompressed as they are read: gzip, zstd or plain."""

import io
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

BUFFER_BYTES = 4 << 20
_READ_BYTES = 1 << 20
# The most that `zstd --long=31` makes; a decoder takes what the file's own window needs.
_MAX_WINDOW_BYTES = 1 << 31
# What is decoded after the last byte of a .zst; if it does not come out, the file is cut short.
_END = b"\0the end of the stream\0"
# With a checksum behind it: the bytes of the frame end otherwise than its content, as they are
# content themselves where a file is cut in what could not be compressed.
_END_FRAME = zstandard.ZstdCompressor(write_checksum=True).compress(_END)


def open_stream(path: Path, codec: str | None) -> BinaryIO:
    """Open a file for reading, decompressed as `codec` says: "gzip", "zstd" or None.

    Several compressed files joined into one are read to the last. While it is read, OSError for
    what is damaged or cut short.
    """
    if codec is None:
        return open(path, "rb")
    decoder = {"gzip": GzipMembers, "zstd": ZstdFrames}[codec]
    return cast(BinaryIO, io.BufferedReader(decoder(open(path, "rb")), BUFFER_BYTES))


class Decoder(io.RawIOBase):
    """Bytes decompressed from a file, a bounded number at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()


class GzipMembers(Decoder):
    """The members of a gzip file, one after another; zeros after one are padding, as tapes have."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.member = zlib.decompressobj(wbits=31)
        self.has_begun = False
        self.compressed = b""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill some of a buffer; returns the number of bytes, 0 at the end."""
        while True:
            if self.member.eof and not self._find_member():
                return 0
            self.compressed = self.compressed or self.file.read(_READ_BYTES)
            if not self.compressed:
                if self.has_begun:
                    raise OSError("the compressed stream ends before its end")
                return 0
            self.has_begun = True
            try:
                content = self.member.decompress(self.compressed, len(buffer))
            except zlib.error as error:
                raise OSError(str(error)) from None
            self.compressed = self.member.unused_data or self.member.unconsumed_tail
            if content:
                buffer[: len(content)] = content
                return len(content)

    def _find_member(self) -> bool:
        """Skip padding; returns whether another member follows."""
        while not (rest := self.compressed.lstrip(b"\0")):
            self.compressed = self.file.read(_READ_BYTES)
            if not self.compressed:
                return False
        self.compressed, self.member = rest, zlib.decompressobj(wbits=31)
        return True


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
