"""Rows of a source as a whole, as JSON: for chats, whose messages are more than one text."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prep.readers.columns import find_column, find_other_column, pick, unify
from prep.readers.documents import BadDocument, is_text
from prep.readers.encodings import decode, repair
from prep.readers.parquet import read_batches

# The keys that hold messages, or what becomes messages (prep/chat/rows.py); the last ones only
# beside others.
CHAT_KEYS = (
    *("messages", "conversations", "prompt", "completion", "chosen", "rejected"),
    *("instruction", "output", "input", "system", "history"),
)
# Rows of a table that are decoded at a time, and the characters that they become, but for the last.
_ROWS = 256
_CHARS = 32 << 20
# How much larger than its file a column of chats may be, about.
_PARQUET_RATIO = 2


def has_chats(keys: Iterable[str]) -> bool:
    """Whether a row with these keys may hold a chat."""
    found = {*keys}
    pairs = ({"chosen", "rejected"}, {"prompt", "completion"}, {"instruction", "output"})
    return bool(found & {"messages", "conversations"}) or any(pair <= found for pair in pairs)


def write_row(row: dict[str, Any]) -> tuple[str, bool]:
    """A row as JSON, and whether U+FFFD stands in it for what was no Unicode."""
    return repair(json.dumps(row, ensure_ascii=False, default=_write_other))


def _write_other(value: Any) -> str:
    """What a table holds that JSON has no form for: bytes are text, as in other columns."""
    return decode(value)[0] if isinstance(value, bytes) else str(value)


def refuse_no_chats(path: Path, names: Sequence[str]) -> None:
    """BadDocument for a table whose columns hold no chats."""
    if not has_chats(names):
        raise BadDocument(
            f"{path}: the columns are {', '.join(names)}; expected messages, conversations, "
            "prompt and completion, chosen and rejected, or instruction and output",
            "no chats",
        )


def read_parquet_rows(
    path: Path, columns: Sequence[str], groups: range
) -> Iterator[tuple[pa.Array, pa.Array, dict[str, pa.Array]]]:
    """The rows of a parquet file's row groups as JSON, the urls beside them, and other columns."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        schema = file.schema_arrow
        refuse_no_chats(path, schema.names)
        chosen = groups[: file.num_row_groups - groups.start]
        names = [(name,) for name in list_names(schema, path, columns)]
        yield from write_batches(read_batches(file, path, chosen, names, _ROWS), path, columns)


def write_batches(
    batches: Iterable[pa.RecordBatch], path: Path, columns: Sequence[str]
) -> Iterator[tuple[pa.Array, pa.Array, dict[str, pa.Array]]]:
    """Tables' rows as JSON, their urls, and the other columns that were asked for."""
    for batch in batches:
        names = [name for name in CHAT_KEYS if name in batch.schema.names]
        urls = pa.nulls(len(batch), pa.large_string())
        if "url" in batch.schema.names and is_text(batch.schema.field("url").type):
            urls = unify(batch.column("url"))
        others = {
            name: pick(batch, find_other_column(batch.schema, path, name)) for name in columns
        }
        start, rows, num_chars = 0, list[str](), 0
        for stop in range(1, len(batch) + 1):
            [row] = batch.slice(stop - 1, 1).select(names).to_pylist()
            rows.append(write_row(row)[0])
            num_chars += len(rows[-1])
            if num_chars >= _CHARS or stop == len(batch):
                part = {name: values[start:stop] for name, values in others.items()}
                yield pa.array(rows, pa.large_string()), urls[start:stop], part
                start, rows, num_chars = stop, [], 0


def list_names(schema: pa.Schema, path: Path, columns: Sequence[str]) -> list[str]:
    """The columns to read: those of chats, the url, and those that were asked for."""
    outer = [find_other_column(schema, path, name)[0] for name in columns]
    for name in (*CHAT_KEYS, "url"):
        find_column(schema, path, name)  # Refuses two.
    return [name for name in schema.names if name in (*CHAT_KEYS, "url", *outer)]


def estimate_bytes(path: Path) -> int:
    """About how many bytes of text a file of chats holds."""
    is_table = path.suffix.lower() == ".parquet"
    return path.stat().st_size * (_PARQUET_RATIO if is_table else 1)
