"""Parquet files whose footer says something else: read, changed and written in Thrift's terms.

Thrift's compact protocol, as far as the footers of pyarrow need it: a struct is a dict from the
numbers of its fields, a list a dict from places, and what a value's type is stands beside it.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

I64, BINARY, LIST, STRUCT = 6, 8, 9, 12


class Struct(dict[int, Any]):
    """The fields of a struct, or the entries of a list, and their types."""

    def __init__(self, kind: int = STRUCT, entry_kind: int = 0) -> None:
        self.kind = kind
        self.entry_kind = entry_kind
        self.kinds: dict[int, int] = {}


def edit_footer(path: Path, change: Callable[[Struct], None]) -> None:
    """Change a file's footer; its data stay."""
    data = path.read_bytes()
    (size,) = struct.unpack("<I", data[-8:-4])
    footer = Reader(data[-8 - size : -8]).read(STRUCT)
    change(footer)
    written = write(STRUCT, footer)
    path.write_bytes(data[: -8 - size] + written + struct.pack("<I", len(written)) + b"PAR1")


class Reader:
    """Reads values of a type."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        self.position += count
        return self.data[self.position - count : self.position]

    def read_varint(self) -> int:
        value = shift = 0
        while (byte := self.take(1)[0]) & 128:
            value |= (byte & 127) << shift
            shift += 7
        return value | byte << shift

    def read(self, kind: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self.take(1)
        if kind in (4, 5, I64):
            value = self.read_varint()
            return value >> 1 ^ -(value & 1)
        if kind == BINARY:
            return self.take(self.read_varint())
        if kind == LIST:
            return self.read_list()
        assert kind == STRUCT
        found, number = Struct(), 0
        while head := self.take(1)[0]:
            number += head >> 4
            assert head >> 4
            found.kinds[number] = head & 15
            found[number] = self.read(head & 15)
        return found

    def read_list(self) -> Struct:
        head = self.take(1)[0]
        count = self.read_varint() if head >> 4 == 15 else head >> 4
        found = Struct(LIST, head & 15)
        for place in range(count):
            found[place] = self.read(head & 15)
        return found


def write(kind: int, value: Any) -> bytes:
    """A value of a type as bytes."""
    if kind in (1, 2):
        return b""
    if kind == 3:
        return bytes(value)
    if kind in (4, 5, I64):
        return write_varint((value << 1 ^ value >> 63) & (2**64 - 1))
    if kind == BINARY:
        return write_varint(len(value)) + bytes(value)
    if kind == LIST:
        many = len(value) >= 15
        head = bytes([(15 if many else len(value)) << 4 | value.entry_kind])
        head += write_varint(len(value)) if many else b""
        return head + b"".join(write(value.entry_kind, entry) for entry in value.values())
    written, before = b"", 0
    for number, entry in value.items():
        written += bytes([number - before << 4 | value.kinds[number]])
        written += write(value.kinds[number], entry)
        before = number
    return written + b"\0"


def write_varint(value: int) -> bytes:
    written = b""
    while value > 127:
        written += bytes([value & 127 | 128])
        value >>= 7
    return written + bytes([value])
