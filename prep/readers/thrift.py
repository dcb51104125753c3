"""Thrift's compact protocol, as far as the header of a parquet file's page needs it."""

from typing import Any

MAX_DEPTH = 8


class PageError(OSError):
    """What cannot be in a parquet file that is whole."""


class Reader:
    """Reads structs from bytes; IndexError at their end, PageError for what no header holds."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def read_struct(self, depth: int = 0) -> dict[int, Any]:
        """The fields of a struct by their numbers."""
        if depth > MAX_DEPTH:
            raise PageError("a page's header is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._read_byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._read_number()
            fields[number] = self._read_value(head & 15, depth)
        return fields

    def _read_value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind in (4, 5, 6):
            return self._read_number()
        if kind == 8:
            return self._skip(self._read_varint())
        if kind == 12:
            return self.read_struct(depth + 1)
        if kind in (3, 7):
            return self._skip(1 if kind == 3 else 8)
        raise PageError("a page's header is not one")  # Lists and maps: it has none.

    def _read_byte(self) -> int:
        byte = self.data[self.position]
        self.position += 1
        return byte

    def _read_varint(self) -> int:
        value = shift = 0
        while (byte := self._read_byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise PageError("a page's header is not one")
        return value | byte << shift

    def _read_number(self) -> int:
        value = self._read_varint()
        return value >> 1 ^ -(value & 1)

    def _skip(self, num_bytes: int) -> None:
        if self.position + num_bytes > len(self.data):
            raise IndexError
        self.position += num_bytes
