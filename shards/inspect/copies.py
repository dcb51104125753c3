"""Which documents --dedup near dropped from a set, and which one was kept for each."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from shards.disk.json_files import Json
from shards.documents import parse_hash
from shards.format import Manifest
from shards.near.listing import is_dropped, read_listing
from shards.schema import list_copies
from shards.screen.names import advise_verify

MAX_SHOWN = 100_000
SHOWN = ("source_file", "source_row", "url", "doc_hash")


class Pair(NamedTuple):
    """A document that was dropped, and the one that was kept for it: rows of a listing."""

    dropped: dict[str, Any]
    kept: dict[str, Any]

    def __str__(self) -> str:
        words = self.dropped["reason"], f"{self.dropped['similarity']:.2f}"
        return f"{words[0]} ({words[1]}): {name(self.dropped)}; kept: {name(self.kept)}"

    @property
    def json(self) -> Json:
        """The pair as JSON; hashes in hexadecimal."""
        documents = {
            key: {field: row[field] for field in SHOWN[:3]} | {"doc_hash": row["doc_hash"].hex()}
            for key, row in zip(self._fields, self, strict=True)
        }
        similarity = round(self.dropped["similarity"], 4)
        return {"reason": self.dropped["reason"], "similarity": similarity, **documents}


def name(row: dict[str, Any]) -> str:
    """Where a document came from, in words."""
    url = f", {row['url']}" if row["url"] else ""
    return f"{row['source_file']}, row {row['source_row']}{url}"


def find_pairs(
    folder: Path, manifest: Manifest, url: str | None, doc_hash: str | None, count: int
) -> list[Pair]:
    """The first `count` dropped documents of a set; with a URL or hash, those of its cluster.

    Raises ValueError if the set has no list of them, or none is found.
    """
    if not 1 <= count <= MAX_SHOWN:
        raise ValueError(f"--count is {count!s:.60}; expected a number from 1 to {MAX_SHOWN:,}")
    lists = list_copies(manifest.audit)
    if not lists:
        raise ValueError(
            f"{folder}: has no list of copies: velocity prep --dedup near makes it, and a set has "
            "none after documents were removed, or if it is a part of another"
        )
    pairs: list[Pair] = []
    for file in sorted(lists):
        pairs += read_pairs(folder / file, url, doc_hash, count - len(pairs))
    if not pairs and (url or doc_hash):
        wanted = f"URL {url}" if url else f"hash {doc_hash}"
        raise ValueError(f"{folder}: no document near the one with the {wanted} was dropped")
    return pairs


def read_pairs(path: Path, url: str | None, doc_hash: str | None, count: int) -> Iterator[Pair]:
    """The first pairs of one list."""
    clusters: set[int] | None = None
    if url is not None or doc_hash is not None:
        column = "url" if url is not None else "doc_hash"
        value = url if url is not None else pa.scalar(parse_hash(doc_hash or ""), pa.binary(16))
        clusters = {
            number
            for rows in read_listing(path, ["kept", column])
            for number in rows.filter(pc.equal(rows.column(column), value))["kept"].to_pylist()
        }
    dropped = list(islice(read_dropped(path, clusters), count))
    wanted = pa.array({row["kept"] for row in dropped}, pa.uint64())
    kept = {}
    for rows in read_listing(path):
        found = rows.filter(pc.is_in(rows.column("number"), value_set=wanted))
        kept.update({row["number"]: row for row in found.to_pylist()})
    if not kept.keys() >= {row["kept"] for row in dropped}:
        raise ValueError(f"{path}: does not list what was kept; {advise_verify(path.parent)}")
    yield from (Pair(row, kept[row["kept"]]) for row in dropped)


def read_dropped(path: Path, clusters: set[int] | None) -> Iterator[dict[str, Any]]:
    """The rows of dropped documents, of all clusters or of these."""
    chosen = None if clusters is None else pa.array(clusters, pa.uint64())
    for rows in read_listing(path):
        mask = is_dropped(rows)
        if chosen is not None:
            mask = pc.and_(mask, pc.is_in(rows.column("kept"), value_set=chosen))
        yield from rows.filter(mask).to_pylist()
