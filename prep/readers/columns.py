"""The columns of a table in a file: found by name, and their texts as large strings."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prep.readers.documents import BadDocument, is_text, split_name
from prep.readers.encodings import decode
from shards.format import Int64

# The names on the way to a column: ("json", "text") is the field `text` of the column `json`.
Column = tuple[str, ...]
# What text is looked at as where its bytes are not to be taken for UTF-8 yet.
_BYTES_OF = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}
_VIEWS = (pa.string_view(), pa.binary_view())


def find_columns(
    schema: pa.Schema, path: Path, text_column: str, columns: Sequence[str]
) -> tuple[Column, Column | None, list[Column]]:
    """The text column, that of the urls if there is one, and the others that were asked for."""
    text = find_text_column(schema, path, text_column)
    others = [find_other_column(schema, path, name) for name in columns]
    url = find_column(schema, path, "url")
    return text, url if url and is_text(type_of(schema, url)) else None, others


def find_text_column(schema: pa.Schema, path: Path, name: str) -> Column:
    """Find the text column; BadDocument if a file has no such column, or no text in it."""
    advice = "; name the right one with --text-column"
    column = find_column(schema, path, name)
    if column is None:
        raise BadDocument(
            f"{path}: no column {name!r}; the columns are {', '.join(schema.names)}{advice}",
            "no such column",
        )
    found = type_of(schema, column)
    if not (is_text(found) or pa.types.is_null(found)):
        raise BadDocument(
            f"{path}: the column {name!r} holds {found}; expected text{advice}", "not text"
        )
    return column


def find_other_column(schema: pa.Schema, path: Path, name: str) -> Column:
    """Find another column; ValueError if a file has no such column, or it has parts."""
    column = find_column(schema, path, name)
    if column is None:
        raise ValueError(f"{path}: no column {name!r}; the columns are {', '.join(schema.names)}")
    found = type_of(schema, column)
    if pa.types.is_nested(found):
        fields = [f"{name}.{field.name}" for field in found] if pa.types.is_struct(found) else []
        raise ValueError(
            f"{path}: the column {name!r} holds {found}, which has parts; name "
            f"{' or '.join(fields) or 'another column'}"
        )
    return column


def find_column(schema: pa.Schema, path: Path, name: str) -> Column | None:
    """The column of that name, else the field `inner` of the column `outer` for `outer.inner`.

    BadDocument if the file has several of them, as nothing says which one is meant.
    """

    def search(fields: list[pa.Field], name: str, column: Column) -> Column | None:
        same = [field for field in fields if field.name == name]
        if len(same) > 1:
            count = "two" if len(same) == 2 else len(same)
            raise BadDocument(
                f"{path}: has {count} columns {'.'.join((*column, name))!r}; expected one; "
                "rename the others, or leave the file out",
                "several columns of one name",
            )
        if same:
            return (*column, name)
        for outer, inner in split_name(name):
            inside = [field for field in fields if field.name == outer]
            if any(pa.types.is_struct(field.type) for field in inside):
                search(fields, outer, column)  # Refuses two.
                if found := search(list(inside[0].type), inner, (*column, outer)):
                    return found
        return None

    return search(list(schema), name, ())


def type_of(schema: pa.Schema, column: Column) -> pa.DataType:
    """The type of a column, or of a field in it."""
    found = schema.field(column[0]).type
    for name in column[1:]:
        found = found.field(name).type
    return found


def pick(batch: pa.RecordBatch, column: Column) -> pa.Array:
    """A column of a batch, or a field in it."""
    values = batch.column(column[0])
    return pc.struct_field(values, list(column[1:])) if len(column) > 1 else values


def check_bounds(values: pa.Array) -> pa.Array:
    """The values; ArrowInvalid for offsets outside of their bytes. UTF-8 is not checked."""
    kind = _BYTES_OF.get(values.type)
    (values.view(kind) if kind else values).validate(full=True)
    return values


def unify(values: pa.Array) -> pa.Array:
    """Text of every kind as large strings, not checked; what is no text as it is."""
    if pa.types.is_dictionary(values.type):
        return unify(values.dictionary).take(values.indices)
    if values.type in (pa.string(), pa.large_string(), pa.null()):
        return values.cast(pa.large_string())
    if is_text(values.type):
        return values.cast(pa.large_binary()).view(pa.large_string())
    return values


def cut_rows(
    columns: Sequence[pa.Array], max_rows: int, max_bytes: int
) -> Iterator[list[pa.Array]]:
    """So many rows at a time as have `max_bytes` of text, or one that has more; texts unified."""
    ends = np.cumsum(sum(map(measure_texts, columns), np.int64(0)))
    first = 0
    while first < len(ends):
        most = max_bytes + (ends[first - 1] if first else 0)
        last = max(int(np.searchsorted(ends, most, "right")), first + 1)
        last = min(last, first + max_rows)
        yield [unify(values[first:last]) for values in columns]
        first = last


def measure_texts(values: pa.Array) -> Int64:
    """The bytes of each row's text, also where rows share one; 0 for what is no text."""
    if not is_text(values.type):
        return np.zeros(len(values), np.int64)
    if pa.types.is_dictionary(values.type):
        sizes = pa.array(measure_texts(values.dictionary)).take(values.indices)
    elif values.type in _VIEWS:  # Each of them begins with its size.
        views = np.frombuffer(values.buffers()[1], np.int32).reshape(-1, 4)
        sizes = views[values.offset : values.offset + len(values), 0].astype(np.int64)
        sizes = pc.if_else(values.is_valid(), sizes, 0)
    else:
        sizes = pc.binary_length(values)
    found: Int64 = pc.fill_null(sizes, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def make_valid(column: pa.Array) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Replace invalid UTF-8 by U+FFFD, as Arrow does not check it; also says in which rows."""
    try:
        column.validate(full=True)
        return column, np.zeros(len(column), np.bool_)
    except pa.ArrowInvalid:
        found = column.cast(pa.large_binary()).to_pylist()
    pairs = [(None, False) if data is None else decode(data) for data in found]
    values, repaired = zip(*pairs, strict=True)
    return pa.array(values, pa.large_string()), np.array(repaired, np.bool_)


def join_small(
    batches: Iterable[pa.RecordBatch], max_rows: int, max_bytes: int
) -> Iterator[pa.RecordBatch]:
    """Join neighbors that have at most so many rows and bytes together."""
    waiting: list[pa.RecordBatch] = []
    num_rows = num_bytes = 0
    for batch in batches:
        size = batch.nbytes
        if waiting and (num_rows + len(batch) > max_rows or num_bytes + size > max_bytes):
            yield _join(waiting)
            num_rows = num_bytes = 0
        waiting.append(batch)
        num_rows, num_bytes = num_rows + len(batch), num_bytes + size
        del batch  # A large one is not held twice.
        if num_rows >= max_rows or num_bytes >= max_bytes:
            yield _join(waiting)
            num_rows = num_bytes = 0
    if waiting:
        yield _join(waiting)


def _join(waiting: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Join batches, and empty the list."""
    joined = waiting[0]
    if len(waiting) > 1:
        [joined] = pa.Table.from_batches(waiting).combine_chunks().to_batches()
    waiting.clear()
    return joined
