"""Arrow IPC: a file as messages, each with where its bytes lie. No byte of a column is read here.

The format is https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
A stream is messages one after another and an end marker; `datasets` writes it. A file, which
Feather 2 is as well, is the same between two marks, with a footer that says where they are.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import pyarrow as pa

from prep.ipc.flatbuffer import DAMAGED, Table

FILE_MARK = b"ARROW1"
CONTINUATION = b"\xff\xff\xff\xff"
# What a message is: the numbers that its header's type has in Arrow's Message.fbs.
SCHEMA, DICTIONARY, BATCH = 1, 2, 3
# Before version 5 of the format, unions (and in pyarrow runs) had a mask as all others have.
VERSION_5 = 4
# A schema of a million columns takes less.
_MAX_METADATA_BYTES = 256 << 20
_FILE_START = 8
_BLOCK = struct.Struct("<qi4xq")
_BLOCKS_OF_DICTIONARIES, _BLOCKS_OF_BATCHES = 2, 3
CODECS = ("lz4", "zstd")


@dataclass(frozen=True)
class Message:
    """What a message says, and where its body lies in the file."""

    kind: int  # SCHEMA, DICTIONARY or BATCH
    version: int
    header: Table
    metadata: bytes  # the message's own, as it is in the file, without the body
    start: int  # the first byte of the body
    num_bytes: int  # of the body

    @property
    def batch(self) -> Table:
        """The header of the record batch: a dictionary's has one inside."""
        found = self.header.table(1) if self.kind == DICTIONARY else self.header
        if found is None:
            raise OSError("a dictionary without values")
        return found

    @property
    def num_rows(self) -> int:
        """The rows of a record batch."""
        count = self.batch.number(0, "<q")
        if not 0 <= count < 1 << 48:
            raise OSError(DAMAGED)
        return count

    @property
    def codec(self) -> str | None:
        """What the buffers of a record batch are compressed with."""
        compression = self.batch.table(3)
        if compression is None:
            return None
        number, method = compression.number(0, "<b"), compression.number(1, "<b")
        if not 0 <= number < len(CODECS) or method:
            raise OSError(f"is compressed in a way that is not known here ({number}, {method})")
        return CODECS[number]


class Messages:
    """The messages of an open file; OSError for what is damaged or cut short."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.num_bytes = os.fstat(file.fileno()).st_size
        head = self.read(0, _FILE_START)
        self.is_file = head.startswith(FILE_MARK)
        self.first = self._read_message(_FILE_START if self.is_file else 0)
        if self.first is None or self.first.kind != SCHEMA:
            raise OSError("it does not begin with a schema")
        if self.first.header.number(0, "<h"):
            raise OSError("its numbers are big-endian; write it again on a little-endian machine")

    @cached_property
    def schema(self) -> pa.Schema:
        """The schema of the record batches."""
        assert self.first is not None
        return pa.ipc.read_schema(pa.py_buffer(self.first.metadata))

    def read(self, start: int, num_bytes: int) -> bytes:
        """Bytes of the file, all of them."""
        self.file.seek(start)
        found = self.file.read(num_bytes)
        if len(found) < num_bytes:
            raise OSError(f"it ends at byte {start + len(found):,}")
        return found

    def __iter__(self) -> Iterator[Message]:
        """The dictionaries and record batches, each after the dictionaries that it needs."""
        messages = self._list_blocks() if self.is_file else self._follow_stream()
        for message in messages:
            if message.kind not in (DICTIONARY, BATCH):
                raise OSError("a message that is no record batch")
            yield message

    def _follow_stream(self) -> Iterator[Message]:
        message = self.first
        assert message is not None
        while True:
            end = message.start + message.num_bytes
            if end == self.num_bytes:
                raise OSError("it ends without its end marker, so record batches may be missing")
            following = self._read_message(end)
            if following is None:
                break
            message = following
            yield message
        rest = self.num_bytes - end - (8 if self.read(end, 4) == CONTINUATION else 4)
        if rest:
            raise OSError(f"{rest:,} bytes follow its end")

    def _list_blocks(self) -> Iterator[Message]:
        """The messages that the footer names: dictionaries first, which may lie behind."""
        tail_bytes = 4 + len(FILE_MARK)
        tail = self.read(max(self.num_bytes - tail_bytes, 0), tail_bytes)
        (size,) = struct.unpack_from("<i", tail)
        start = self.num_bytes - tail_bytes - size
        if not tail.endswith(FILE_MARK) or not size > 0 or start < _FILE_START:
            raise OSError("it ends without its footer")
        footer = Table.root(self.read(start, size))
        blocks = footer.structs(_BLOCKS_OF_DICTIONARIES, _BLOCK)
        for place, _, _ in blocks + footer.structs(_BLOCKS_OF_BATCHES, _BLOCK):
            message = self._read_message(place)
            if message is None:
                raise OSError("the footer names a place without a message")
            yield message

    def _read_message(self, place: int) -> Message | None:
        """The message that begins at a byte; None for the end marker."""
        if not 0 <= place <= self.num_bytes - 4:
            raise OSError(f"a message at byte {place:,} is not in the file")
        start = place + 4
        word = self.read(place, 4)
        if word == CONTINUATION:  # Streams of before 2019 lack it.
            word = self.read(start, 4)
            start += 4
        (size,) = struct.unpack("<i", word)
        if size == 0:
            return None
        if not 0 < size <= _MAX_METADATA_BYTES or start + size > self.num_bytes:
            raise OSError(f"the message at byte {place:,} does not end")
        metadata = self.read(start, size)
        root, body = Table.root(metadata), start + size
        header, num_bytes = root.table(2), root.number(3, "<q")
        if header is None or not 0 <= num_bytes <= self.num_bytes - body:
            raise OSError(f"the message at byte {place:,} is cut short")
        whole = CONTINUATION + word + metadata
        return Message(root.number(1, "<B"), root.number(0, "<h"), header, whole, body, num_bytes)
