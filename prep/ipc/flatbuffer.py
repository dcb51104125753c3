"""FlatBuffers, in which Arrow IPC writes its metadata: read with every place checked.

A table begins with the distance to a list of where its fields are, 0 for one that is not there:
https://flatbuffers.dev/internals/
"""

import struct
from typing import Any

DAMAGED = "its metadata is damaged"


class Table:
    """A table of a FlatBuffer: fields by number; OSError for what lies outside of it."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position
        self.fields = position - self._read("<i", position)
        self.num_fields = (self._read("<H", self.fields) - 4) // 2

    @classmethod
    def root(cls, data: bytes) -> "Table":
        """The table that a FlatBuffer holds."""
        return cls(data, cls._read_from(data, "<I", 0))

    def number(self, field: int, form: str, default: int = 0) -> int:
        """A number, of a format of `struct`."""
        place = self._find(field)
        return default if place is None else self._read(form, place)

    def table(self, field: int) -> "Table | None":
        """A table inside this one."""
        place = self._find(field)
        return None if place is None else self._follow(place)

    def tables(self, field: int) -> list["Table"]:
        """A vector of tables."""
        start, count = self._find_vector(field)
        return [self._follow(start + 4 * i) for i in range(count)]

    def structs(self, field: int, form: struct.Struct) -> list[tuple[Any, ...]]:
        """A vector of structs."""
        start, count = self._find_vector(field)
        return list(form.iter_unpack(self._cut(start, count * form.size)))

    def text(self, field: int) -> bytes:
        """A string."""
        start, count = self._find_vector(field)
        return self._cut(start, count)

    def _find(self, field: int) -> int | None:
        if field >= self.num_fields:
            return None
        offset = self._read("<H", self.fields + 4 + 2 * field)
        return self.position + offset if offset else None

    def _find_vector(self, field: int) -> tuple[int, int]:
        place = self._find(field)
        if place is None:
            return 0, 0
        start = place + self._read("<I", place)
        return start + 4, self._read("<I", start)

    def _follow(self, place: int) -> "Table":
        return Table(self.data, place + self._read("<I", place))

    def _cut(self, start: int, size: int) -> bytes:
        if start + size > len(self.data):
            raise OSError(DAMAGED)
        return self.data[start : start + size]

    def _read(self, form: str, place: int) -> int:
        return self._read_from(self.data, form, place)

    @staticmethod
    def _read_from(data: bytes, form: str, place: int) -> int:
        if not 0 <= place <= len(data) - struct.calcsize(form):
            raise OSError(DAMAGED)
        return int(struct.unpack_from(form, data, place)[0])
