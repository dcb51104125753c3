"""Which documents of a set were dropped as copies, and what was kept instead: copies-00000.parquet.

A row for each dropped document and each that was kept for one, in the order of their numbers: all
documents of the units in plan order, those that were dropped included. `kept` is the number of the
document that stayed, for itself its own.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.disk.durable import naming, sync_file
from shards.screen.names import advise_verify
from shards.sidecar import HASH_BYTES

LISTING_SCHEMA = pa.schema(
    [
        ("number", pa.uint64()),
        ("kept", pa.uint64()),
        ("reason", pa.string()),  # what it was dropped as; null if it stayed
        ("similarity", pa.float32()),  # with the one that stayed, as estimated from signatures
        ("source_file", pa.string()),
        ("source_row", pa.uint64()),
        ("url", pa.string()),
        ("doc_hash", pa.binary(HASH_BYTES)),
    ]
)
GROUP_ROWS = 65_536
# Rows decoded at a time: a file may store a long text once for all of its rows.
READ_ROWS = 4096


def write_listing(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write rows of LISTING_SCHEMA, durably; the bytes do not depend on how they are batched."""
    waiting = LISTING_SCHEMA.empty_table()
    with naming(path), pq.ParquetWriter(path, LISTING_SCHEMA, compression="zstd") as file:
        for table in tables:
            waiting = pa.concat_tables([waiting, table])
            while len(waiting) >= GROUP_ROWS:
                file.write_table(waiting.slice(0, GROUP_ROWS).combine_chunks(), GROUP_ROWS)
                waiting = waiting.slice(GROUP_ROWS)
        file.write_table(waiting.combine_chunks(), GROUP_ROWS)
    with open(path, "rb") as written:
        sync_file(written)


def read_listing(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a listing, some at a time; ValueError if it is missing or is none."""
    if not path.is_file():
        raise ValueError(f"{path}: is missing; {advise_verify(path.parent)}")
    try:
        with pq.ParquetFile(path) as file:
            if file.schema_arrow != LISTING_SCHEMA:
                raise ValueError(f"{path}: is no list of copies; {advise_verify(path.parent)}")
            yield from file.iter_batches(READ_ROWS, columns=columns)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: cannot be read as parquet ({reason}); {advise_verify(path.parent)}"
        ) from None


def is_dropped(rows: pa.RecordBatch) -> pa.Array:
    """Which rows are of documents that were dropped."""
    return pc.is_valid(rows.column("reason"))
