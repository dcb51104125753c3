"""The columns of a record batch, by how their values are stored; text becomes large strings.

The layouts are those of https://arrow.apache.org/docs/format/Columnar.html
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prep.ipc.buffers import Body
from prep.ipc.messages import VERSION_5
from shards.format import Int64

Bools = npt.NDArray[np.bool_]

_LARGE = (pa.large_string(), pa.large_binary())
_VIEWS = (pa.string_view(), pa.binary_view())
_STRINGS = (pa.string(), pa.binary(), *_LARGE)
# A view of a text of so many bytes holds the text itself.
_MAX_INLINE_BYTES = 12
# Rows of which only the sizes are looked at; a multiple of 8, as masks have 8 rows in a byte.
_MEASURED_ROWS = 1 << 16


@dataclass(frozen=True)
class Window:
    """Some rows of a column: how large each text is, and what reads some of them."""

    sizes: Int64
    read: Callable[[int, int], pa.Array]


class Part:
    """A column of a record batch: the kind of its values, and which buffers they are in."""

    def __init__(
        self, body: Body, kind: pa.DataType, masks: Sequence[int], first: int, num_views: int
    ) -> None:
        self.kind = kind
        self.max_text_bytes = body.max_text_bytes
        self.masks = [mask for mask in map(body.open, masks) if mask.size]
        self.setup(body, first, num_views)

    def setup(self, body: Body, first: int, num_views: int) -> None:
        """Open the buffers of the values, from the `first` on."""

    def open(self, start: int, stop: int) -> Window:
        """A window of rows; `start` is a multiple of 8."""
        raise NotImplementedError

    def measure(self, num_rows: int) -> int:
        """The bytes of all texts."""
        starts = range(0, num_rows, _MEASURED_ROWS)
        windows = (self.open(start, min(start + _MEASURED_ROWS, num_rows)) for start in starts)
        return sum(int(window.sizes.sum()) for window in windows)

    def cut_long(self, sizes: Int64) -> Int64:
        """The bytes to read of each text: of one alone, not more than are wanted."""
        return np.minimum(sizes, self.max_text_bytes) if len(sizes) == 1 else sizes

    def find_valid(self, start: int, stop: int) -> Bools:
        """Which rows are not null, in this column and those that it is in."""
        is_valid = np.ones(stop - start, np.bool_)
        for mask in self.masks:
            raw = np.frombuffer(mask.read(start // 8, -(-stop // 8)), np.uint8)
            bits = np.unpackbits(raw, count=stop - start, bitorder="little")
            is_valid &= bits.astype(np.bool_)
        return is_valid


class Strings(Part):
    """Text in which each begins where the one before ends."""

    def setup(self, body: Body, first: int, num_views: int) -> None:
        self.form = np.dtype(np.int64 if self.kind in _LARGE else np.int32)
        self.offsets, self.data = body.open(first), body.open(first + 1)

    def measure(self, num_rows: int) -> int:
        return self.data.size

    def open(self, start: int, stop: int) -> Window:
        width = self.form.itemsize
        raw = self.offsets.read(start * width, (stop + 1) * width)
        offsets = np.frombuffer(raw, self.form).astype(np.int64)
        sizes = np.diff(offsets)
        if (sizes < 0).any():
            raise OSError("the offsets of its texts are damaged")
        is_valid = self.find_valid(start, stop)

        def read(first: int, last: int) -> pa.Array:
            found = self.cut_long(sizes[first:last])
            data = self.data.read(int(offsets[first]), int(offsets[first] + found.sum()))
            return make_texts(data, found, is_valid[first:last])

        return Window(sizes, read)


class Views(Part):
    """Text of which each row says where it is, unless it is short: then it is in the row."""

    def setup(self, body: Body, first: int, num_views: int) -> None:
        self.views = body.open(first)
        self.data = [body.open_whole(first + 1 + i) for i in range(num_views)]

    def open(self, start: int, stop: int) -> Window:
        raw = self.views.read(start * 16, stop * 16)
        views = np.frombuffer(raw, np.int32).reshape(-1, 4)
        is_valid = self.find_valid(start, stop)
        sizes = np.where(is_valid, views[:, 0], 0).astype(np.int64)
        if (sizes < 0).any():
            raise OSError("the sizes of its texts are damaged")

        def read(first: int, last: int) -> pa.Array:
            pieces = []
            found = self.cut_long(sizes[first:last])
            for row, size in enumerate(found.tolist(), first):
                if size <= _MAX_INLINE_BYTES:
                    pieces.append(raw[16 * row + 4 : 16 * row + 4 + size])
                    continue
                number, place = int(views[row, 2]), int(views[row, 3])
                if not 0 <= number < len(self.data):
                    raise OSError("a text that is in none of the buffers")
                pieces.append(self.data[number].read(place, place + size))
            return make_texts(b"".join(pieces), found, is_valid[first:last])

        return Window(sizes, read)


class Fixed(Part):
    """Values of as many bits each: numbers, dates, true and false."""

    def setup(self, body: Body, first: int, num_views: int) -> None:
        self.values = body.open(first)

    def open(self, start: int, stop: int) -> Window:
        array = self.read_all(self.kind, start, stop)
        return Window(np.zeros(stop - start, np.int64), lambda first, last: array[first:last])

    def read_all(self, kind: pa.DataType, start: int, stop: int) -> pa.Array:
        """The values of all rows of a window."""
        bits = kind.bit_width
        raw = self.values.read(start * bits // 8, -(-stop * bits // 8))
        mask = make_mask(self.find_valid(start, stop))
        return pa.Array.from_buffers(kind, stop - start, [mask, pa.py_buffer(raw)])


class Indexed(Fixed):
    """Places in a dictionary."""

    values_there: pa.Array | None = None  # None if the file has none

    def open(self, start: int, stop: int) -> Window:
        places = self.read_all(self.kind.index_type, start, stop)
        found = places.drop_null()
        num_values = len(self.values_there) if self.values_there is not None else 0
        if len(found) and not 0 <= pc.min(found).as_py() <= pc.max(found).as_py() < num_values:
            raise OSError("a value that is not in its dictionary")
        if self.values_there is None:
            nulls = pa.nulls(stop - start, self.kind.value_type)
            return Window(np.zeros(stop - start, np.int64), lambda first, last: nulls[first:last])
        values = self.values_there
        sizes = np.zeros(stop - start, np.int64)
        if values.type == pa.large_string():
            lengths = pc.fill_null(pc.binary_length(values).take(places), 0)
            sizes = lengths.to_numpy(zero_copy_only=False)
        return Window(sizes, lambda first, last: values.take(places[first:last]))


class Nulls(Part):
    """Rows without a value."""

    def open(self, start: int, stop: int) -> Window:
        nulls = pa.nulls(stop - start, pa.large_string())
        return Window(np.zeros(stop - start, np.int64), lambda first, last: nulls[first:last])


def make_texts(data: bytes, sizes: Int64, is_valid: Bools) -> pa.Array:
    """Texts that lie one behind another, as large strings that are not checked."""
    offsets = np.append(np.int64(0), np.cumsum(sizes))
    buffers = [make_mask(is_valid), pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_string(), len(sizes), buffers)


def make_mask(is_valid: Bools) -> pa.Buffer | None:
    """The rows that are not null, as Arrow has them; None if all are."""
    return None if is_valid.all() else pa.py_buffer(np.packbits(is_valid, bitorder="little"))


def open_part(
    body: Body, schema: pa.Schema, column: Sequence[str], values: pa.Array | None
) -> Part:
    """A column of a record batch, or a field in it; `values` is its dictionary.

    `column` has the names on the way to it. OSError for a record batch that is not of the schema.
    """
    cursor = Cursor(body)
    fields = list(schema)
    masks: list[int] = []
    for name in column:
        place = next(i for i, field in enumerate(fields) if field.name == name)
        for field in fields[:place]:
            cursor.skip(field.type)
        kind = skip_extension(fields[place].type)
        if not pa.types.is_null(kind):
            masks.append(cursor.buffer)
        if body.rows[cursor.node : cursor.node + 1] != [body.message.num_rows]:
            raise OSError("a column that does not have as many rows as its record batch")
        if pa.types.is_struct(kind):
            cursor.node, cursor.buffer = cursor.node + 1, cursor.buffer + 1
            fields = list(kind)
    part = choose_part(kind)(body, kind, masks, cursor.buffer + 1, cursor.num_views)
    if isinstance(part, Indexed):
        part.values_there = values
    return part


def choose_part(kind: pa.DataType) -> type[Part]:
    """How values of a type are stored."""
    if kind in _STRINGS:
        return Strings
    if kind in _VIEWS:
        return Views
    if pa.types.is_null(kind):
        return Nulls
    return Indexed if pa.types.is_dictionary(kind) else Fixed


def skip_extension(kind: pa.DataType) -> pa.DataType:
    """The type that values are stored as."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


class Cursor:
    """Where in a record batch the columns begin: every column has a node, and some buffers."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.node = self.buffer = self.view = 0

    @property
    def num_views(self) -> int:
        """The buffers of texts of the next column of views."""
        counts = self.body.view_counts[self.view : self.view + 1]
        return counts[0] if counts else 0

    def skip(self, kind: pa.DataType) -> None:
        """Go behind a column and those inside it."""
        kind = skip_extension(kind)
        self.node += 1
        self.buffer += self._count_buffers(kind)
        if kind in _VIEWS:
            self.buffer += self.num_views
            self.view += 1
        for place in range(kind.num_fields):
            self.skip(kind.field(place).type)

    def _count_buffers(self, kind: pa.DataType) -> int:
        types, is_old = pa.types, self.body.message.version < VERSION_5
        if types.is_null(kind):
            return 0
        if types.is_run_end_encoded(kind):
            return int(is_old)
        if types.is_union(kind):
            return 1 + int(kind.mode == "dense") + is_old
        if types.is_struct(kind) or types.is_fixed_size_list(kind):
            return 1
        is_list_view = types.is_list_view(kind) or types.is_large_list_view(kind)
        return 3 if kind in _STRINGS or is_list_view else 2
