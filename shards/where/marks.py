"""A condition applied to the rows of a sidecar: which of them it is true for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.sidecar import Marks
from shards.where.condition import (
    Both,
    Column,
    Compare,
    Condition,
    Contains,
    IsNull,
    Literal,
    Node,
    Not,
    OneOf,
    Value,
)

# What values may be compared with each other.
NUMBER, TEXT, TRUTH = "numbers", "text", "true and false"
KERNELS: dict[str, Callable[[Any, Any], Any]] = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def mark_rows(condition: Condition, rows: pa.RecordBatch) -> Marks:
    """The rows for which the condition is true; they have the columns that it names.

    Raises ValueError, in one line, where a column's values cannot be compared as it asks.
    """
    marks: Marks = np.asarray(
        pc.fill_null(apply(condition.root, rows), False).to_numpy(zero_copy_only=False)
    )
    return marks


def apply(node: Node, rows: pa.RecordBatch) -> pa.Array:
    """True, false or null for each row."""
    match node:
        case Column():
            return expect(node, rows, TRUTH)
        case Not(inner):
            return pc.invert(apply(inner, rows))
        case Both(word, parts):
            join = pc.and_kleene if word == "and" else pc.or_kleene
            found = apply(parts[0], rows)
            for part in parts[1:]:
                found = join(found, apply(part, rows))
            return found
        case IsNull(column):
            return rows.column(column.name).is_null()
        case Contains(column, text):
            return pc.match_substring(expect(column, rows, TEXT), text)
        case OneOf(column, values):
            return find_values(column, values, rows)
        case Compare(left, sign, right):
            return compare(left, sign, right, rows)


def compare(left: Column, sign: str, right: Column | Literal, rows: pa.RecordBatch) -> pa.Array:
    """Compare two values in each row; ValueError if they are of different kinds."""
    values, kind = read_column(left, rows)
    if isinstance(right, Literal):
        if find_kind(right.value) != kind:
            raise make_kind_error(left, kind, right.value)
        return KERNELS[sign](values, pa.scalar(right.value))
    return KERNELS[sign](values, expect(right, rows, kind))


def find_values(column: Column, wanted: tuple[Value, ...], rows: pa.RecordBatch) -> pa.Array:
    """Whether each row has one of the values; ValueError if one is of another kind."""
    values, kind = read_column(column, rows)
    for value in wanted:
        if find_kind(value) != kind:
            raise make_kind_error(column, kind, value)
    if kind == NUMBER and any(isinstance(value, float) for value in wanted):
        values = values.cast(pa.float64())
        wanted = tuple(float(value) for value in wanted)
    found = pc.is_in(values, value_set=pa.array(wanted).cast(values.type))
    return pc.if_else(values.is_valid(), found, None)


def find_kind(value: Value) -> str:
    """What a value of a condition may be compared with."""
    if isinstance(value, bool):
        return TRUTH
    return TEXT if isinstance(value, str) else NUMBER


def read_column(column: Column, rows: pa.RecordBatch) -> tuple[pa.Array, str]:
    """A column's values, and what they may be compared with."""
    values = rows.column(column.name)
    if pa.types.is_floating(values.type):
        return values, NUMBER
    if pa.types.is_integer(values.type):
        return values.cast(pa.int64()), NUMBER
    if pa.types.is_string(values.type):
        return values, TEXT
    if pa.types.is_boolean(values.type):
        return values, TRUTH
    raise ValueError(f"the column {column.name!r} holds {values.type}, which no condition compares")


def expect(column: Column, rows: pa.RecordBatch, kind: str) -> pa.Array:
    """A column's values; ValueError if they are not of this kind."""
    values, found = read_column(column, rows)
    if found != kind:
        raise ValueError(f"the column {column.name!r} holds {found}; expected {kind}")
    return values


def make_kind_error(column: Column, kind: str, value: Value) -> ValueError:
    """The error for a value that a column's cannot be compared with."""
    return ValueError(
        f"the column {column.name!r} holds {kind}, which cannot be compared with {value!r:.60}"
    )
