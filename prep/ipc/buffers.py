"""The buffers of a record batch: read where they lie, or decompressed from front to back."""

import io
import struct
from typing import Any, Protocol

import pyarrow as pa

from prep.ipc.messages import Message, Messages

# Bytes that are decompressed at a time where they are only passed over.
_SKIPPED_BYTES = 1 << 20
# What may be held whole: a dictionary, and compressed texts that may be read in any order.
MAX_HELD_BYTES = 1 << 30
_PAIR = struct.Struct("<qq")
_COUNT = struct.Struct("<q")


class TooLarge(Exception):
    """A record batch of which more would have to be held in memory than MAX_HELD_BYTES."""


class Bytes(Protocol):
    """A buffer of a record batch."""

    size: int

    def read(self, start: int, stop: int) -> bytes:
        """Bytes of it; OSError if it ends before."""
        ...


class Plain:
    """A buffer that is not compressed: where it lies in the file."""

    def __init__(self, messages: Messages, start: int, size: int) -> None:
        self.messages = messages
        self.start = start
        self.size = size

    def read(self, start: int, stop: int) -> bytes:
        _check_bounds(start, stop, self.size)
        return self.messages.read(self.start + start, stop - start)


class Compressed:
    """A compressed buffer, read forward; what was read last may be read again."""

    def __init__(self, source: Plain, codec: str, size: int) -> None:
        self.source = source
        self.codec = codec
        self.size = size
        self.stream: Any = None
        self.start = 0
        self.held = b""

    def read(self, start: int, stop: int) -> bytes:
        _check_bounds(start, stop, self.size)
        if self.stream is None or start < self.start:
            self.stream = pa.CompressedInputStream(
                pa.PythonFile(io.BufferedReader(_Raw(self.source))), self.codec
            )
            self.start, self.held = 0, b""
        while start > self.start + len(self.held):
            self.start += len(self.held)
            self.held = self._take(min(start - self.start, _SKIPPED_BYTES))
        self.held = self.held[start - self.start :]
        self.start = start
        self.held += self._take(stop - start - len(self.held))
        return self.held[: stop - start]

    def _take(self, size: int) -> bytes:
        found = self.stream.read(size) if size > 0 else b""
        if len(found) < size:
            raise OSError("a compressed buffer ends before its end")
        return bytes(found)


class _Raw(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, source: Plain) -> None:
        self.source = source
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        stop = min(self.position + len(buffer), self.source.size)
        found = self.source.read(self.position, stop)
        buffer[: len(found)] = found
        self.position = stop
        return len(found)


class Held:
    """A buffer in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)

    def read(self, start: int, stop: int) -> bytes:
        _check_bounds(start, stop, self.size)
        return self.content[start:stop]


def _check_bounds(start: int, stop: int, size: int) -> None:
    if not 0 <= start <= stop <= size:
        raise OSError(f"a buffer of {size:,} bytes, of which byte {stop:,} is used")


class Body:
    """The buffers of a record batch, by number."""

    def __init__(self, messages: Messages, message: Message, max_text_bytes: int) -> None:
        self.messages = messages
        self.message = message
        self.codec = message.codec
        self.places = message.batch.structs(2, _PAIR)
        self.rows = [count for count, _ in message.batch.structs(1, _PAIR)]
        self.view_counts = [count for (count,) in message.batch.structs(4, _COUNT)]
        self.num_held = 0
        # How much is read of a longer text.
        self.max_text_bytes = max_text_bytes

    def open(self, number: int) -> Bytes:
        """A buffer; decompressed as it is read."""
        if not 0 <= number < len(self.places):
            raise OSError("it has fewer buffers than its columns need")
        start, size = self.places[number]
        if start < 0 or size < 0 or start + size > self.message.num_bytes:
            raise OSError("a buffer that is not in its record batch")
        plain = Plain(self.messages, self.message.start + start, size)
        if self.codec is None or not size:
            return plain
        (num_bytes,) = _COUNT.unpack(plain.read(0, _COUNT.size))
        inside = Plain(self.messages, plain.start + _COUNT.size, size - _COUNT.size)
        return inside if num_bytes == -1 else Compressed(inside, self.codec, num_bytes)

    def open_whole(self, number: int) -> Bytes:
        """A buffer that may be read in any order."""
        found = self.open(number)
        if not isinstance(found, Compressed):
            return found
        self.hold(found.size)
        return Held(found.read(0, found.size))

    def hold(self, num_bytes: int) -> None:
        """Count what is held in memory; TooLarge if that is too much."""
        self.num_held += num_bytes
        if self.num_held > MAX_HELD_BYTES:
            raise TooLarge
