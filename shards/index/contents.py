"""What an index says about itself: index.json, and how it is read and checked.

    .index/index.json                      written last: where it is, all arrays are there, whole
    .index/train-00000.bin.0.<id>.sa       an array over tokens of one shard; <id> begins the
                                           sha256 of that .bin, so it stands for no other tokens

An array belongs to the bytes of its shard, not to a version of the set: the next version keeps the
arrays of the shards that it keeps. index.json belongs to one version, by its dataset_id.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.disk.durable import write_file
from shards.disk.json_files import SEAL, Json, is_sealed, parse_json, read_json, seal_json
from shards.disk.layout import array_path, index_path
from shards.disk.shapes import HASH, find_misshape
from shards.format import Manifest, Shard
from shards.screen.names import quote

SCHEMA_VERSION = 1
SHAPE: dict[str, Any] = {
    "schema_version": int,
    "dataset_id": HASH,
    "arrays": [{"shard": str, "first": int, "num_tokens": int, "sha256_of_checksums": HASH}],
}


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


def write_index(folder: Path, manifest: Manifest, checksums: dict[Entry, str]) -> None:
    """Write index.json; `checksums` has the sha256 of the checksums of each array, in order."""
    arrays = [
        {
            "shard": entry.shard.name,
            "first": entry.first,
            "num_tokens": entry.num_tokens,
            "sha256_of_checksums": sha256,
        }
        for entry, sha256 in checksums.items()
    ]
    content = {
        "schema_version": SCHEMA_VERSION,
        "dataset_id": manifest.dataset_id,
        "arrays": arrays,
    }
    write_file(index_path(folder), seal_json(content))


def read_index(folder: Path, manifest: Manifest) -> dict[Entry, str]:
    """The arrays of a set's index, each with the sha256 of its checksums.

    Raises ValueError with one line if there is no index, it is damaged, or it is another version's.
    """
    path = index_path(folder)
    advice = f"make it with: velocity shards index {quote(folder)}"
    text = read_json(path, f"{folder}: has no index; {advice}")
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
        raise ValueError(
            f"{path}: is for the version {raw['dataset_id'][:12]} of the set, which is "
            f"{manifest.dataset_id[:12]} now; shards that did not change keep their arrays, so "
            f"{advice}"
        )
    fault = fault or find_gap(manifest, raw["arrays"])
    if fault:
        raise ValueError(f"{path}: {fault}; {advice}")
    return dict(read_entries(manifest, raw["arrays"]))


def read_entries(manifest: Manifest, arrays: list[Json]) -> Iterator[tuple[Entry, str]]:
    """The arrays that index.json lists, each with the sha256 of its checksums."""
    shards = {shard.name: shard for shard in manifest.shards}
    for raw in arrays:
        entry = Entry(shards[raw["shard"]], raw["first"], raw["num_tokens"])
        yield entry, raw["sha256_of_checksums"]


def find_gap(manifest: Manifest, arrays: list[Json]) -> str | None:
    """Which shard is not covered by the arrays, from one end to the other; None if all are."""
    ends = {shard.name: 0 for shard in manifest.shards}
    for raw in arrays:
        if ends.get(raw["shard"]) != raw["first"]:
            return f"its arrays over {raw['shard']:.60} do not follow each other"
        ends[raw["shard"]] += raw["num_tokens"]
    for shard in manifest.shards:
        if ends[shard.name] != shard.num_tokens:
            return f"its arrays cover {ends[shard.name]:,} tokens of {shard.name}"
    return None
