"""What an index says about itself: index.json, and how it is read and checked.

    .index/index.json                      written last: where it is, all arrays are there, whole
    .index/train-00000.bin.0.<id>.sa       an array over tokens of one shard; <id> begins the
                                           sha256 of that .bin, so it stands for no other tokens

An array belongs to the bytes of its shard, not to a version of the set: the next version keeps the
arrays of the shards that it keeps. index.json belongs to one version, by its dataset_id.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.disk.durable import write_file
from shards.disk.json_files import SEAL, Json, is_sealed, parse_json, read_json, seal_json
from shards.disk.layout import array_path, index_folder, index_path, list_arrays
from shards.disk.shapes import HASH, find_misshape
from shards.format import Manifest, Shard
from shards.screen.names import quote

SCHEMA_VERSION = 2
ARRAY: dict[str, Any] = {
    "shard": str,
    "first": int,
    "num_tokens": int,
    "sha256": HASH,
    "sha256_of_checksums": HASH,
}
SHAPE: dict[str, Any] = {"schema_version": int, "dataset_id": HASH, "arrays": [ARRAY]}


class OtherVersionError(ValueError):
    """An index that is sound, of another version of the set."""


@dataclass(frozen=True)
class Entry:
    """One array: the tokens of a shard that it orders, whole documents."""

    shard: Shard
    # Its first token, counted from the beginning of the .bin.
    first: int
    num_tokens: int

    def path(self, folder: Path) -> Path:
        """Its file, in the set's folder `folder`."""
        return array_path(folder, self.shard.name, self.first, self.shard.sha256)


@dataclass(frozen=True)
class Digests:
    """The sha256 of an array's file, and that of its checksums, which vouch for single blocks."""

    file: str
    checksums: str


# The arrays of an index, in order.
Arrays = dict[Entry, Digests]


def write_index(folder: Path, manifest: Manifest, arrays: Arrays) -> None:
    """Write index.json."""
    listed = [
        {
            "shard": entry.shard.name,
            "first": entry.first,
            "num_tokens": entry.num_tokens,
            "sha256": digests.file,
            "sha256_of_checksums": digests.checksums,
        }
        for entry, digests in arrays.items()
    ]
    content = {
        "schema_version": SCHEMA_VERSION,
        "dataset_id": manifest.dataset_id,
        "arrays": listed,
    }
    write_file(index_path(folder), seal_json(content))


def advise_index(folder: Path) -> str:
    """What an error about an index ends with."""
    return f"make it with: velocity shards index {quote(folder)}"


def read_index(folder: Path, manifest: Manifest) -> Arrays:
    """The arrays of a set's index.

    Raises ValueError with one line if there is no index or it is damaged, OtherVersionError if it
    is another version's.
    """
    path, advice = index_path(folder), advise_index(folder)
    text = read_json(path, f"{folder}: has no index; {advice}")
    return parse_index(text, path, manifest, advice)


def parse_index(text: bytes, path: Path | str, manifest: Manifest, advice: str) -> Arrays:
    """What index.json says; `path` is what errors call it, and `advice` is their end."""
    raw = parse_json(text, path, f"; {advice}")
    if not (SEAL in raw and is_sealed(text, raw)):
        raise ValueError(f"{path}: was edited or damaged; {advice}")
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema_version is {raw.get('schema_version')!r:.60}; this velocity reads "
            f"{SCHEMA_VERSION}, so {advice}"
        )
    fault = find_misshape(raw, SHAPE)
    if fault is None and raw["dataset_id"] != manifest.dataset_id:
        raise OtherVersionError(
            f"{path}: is for the version {raw['dataset_id'][:12]} of the set, which is "
            f"{manifest.dataset_id[:12]} now; shards that did not change keep their arrays, so "
            f"{advice}"
        )
    fault = fault or find_gap(manifest, raw["arrays"])
    if fault:
        raise ValueError(f"{path}: {fault}; {advice}")
    return dict(read_entries(manifest, raw["arrays"]))


def read_entries(manifest: Manifest, arrays: list[Json]) -> Iterator[tuple[Entry, Digests]]:
    """The arrays that index.json lists."""
    shards = {shard.name: shard for shard in manifest.shards}
    for raw in arrays:
        entry = Entry(shards[raw["shard"]], raw["first"], raw["num_tokens"])
        yield entry, Digests(raw["sha256"], raw["sha256_of_checksums"])


def find_gap(manifest: Manifest, arrays: list[Json]) -> str | None:
    """Which shard is not covered by the arrays, from one end to the other; None if all are."""
    ends = {shard.name: 0 for shard in manifest.shards}
    for raw in arrays:
        if ends.get(raw["shard"]) != raw["first"] or not raw["num_tokens"]:
            return f"its arrays over {raw['shard']:.60} do not follow each other"
        ends[raw["shard"]] += raw["num_tokens"]
    for shard in manifest.shards:
        if ends[shard.name] != shard.num_tokens:
            return f"its arrays cover {ends[shard.name]:,} tokens of {shard.name}"
    return None


def clear_others(folder: Path, entries: Iterable[Entry]) -> None:
    """Remove the arrays of other versions, and what a stopped command left."""
    kept = {entry.path(folder) for entry in entries}
    for path in [*list_arrays(folder), *index_folder(folder).glob("*.tmp")]:
        if path not in kept:
            path.unlink(missing_ok=True)
