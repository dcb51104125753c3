"""A part of a set as a set of its own: one split, or every n-th shard of each split.

Its manifest has the same content with fewer shards, so its own dataset_id, and names the set that
it was cut from in `content["parent"]`. The audit and the sources stay the whole set's: they say
how the documents came about, and `parent` says that not all of them are here.
"""

import re
from dataclasses import dataclass

from shards.format import SPLITS, Json, Manifest, make_manifest


@dataclass(frozen=True)
class Part:
    """Every `count`-th shard of each split, from number `index` on."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_part(text: str) -> Part:
    """A part as the command line has it, counted from 0.

    >>> parse_part("0/4")
    Part(index=0, count=4)
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise ValueError(
            f"--part is {text!r}; expected i/n with i from 0 to n - 1, such as 0/4 for the first "
            "of four parts"
        )
    return Part(int(found[1]), int(found[2]))


def cut_manifest(manifest: Manifest, split: str | None, part: Part | None) -> str:
    """The manifest of one split, or of a part of each split, as text.

    Raises ValueError where nothing would be in it.
    """
    if split not in (*SPLITS, None):
        raise ValueError(f"--split is {split!r}; expected one of {', '.join(SPLITS)}")
    step = part or Part(0, 1)
    shards = [
        shard
        for name in SPLITS
        if split in (name, None)
        for shard in manifest.split(name)[step.index :: step.count]
    ]
    if not shards:
        counts = ", ".join(f"{len(manifest.split(name)):,} {name}" for name in SPLITS)
        raise ValueError(f"the set has {counts} shards, so nothing is in the part asked for")
    parent: Json = {"dataset_id": manifest.dataset_id, "change": "part"}
    if split is not None:
        parent["split"] = split
    if part is not None:
        parent["part"] = str(part)
    here = {shard.sidecar for shard in shards}
    sidecars = manifest.environment.get("sidecar_sha256", {})
    environment = manifest.environment | {
        "sidecar_sha256": {name: sha256 for name, sha256 in sidecars.items() if name in here}
    }
    content = {key: value for key, value in manifest.content.items() if key != "same_places"}
    content["parent"] = parent
    if part is None:  # A split that is whole has its tokens where the whole set has them.
        content["same_places"] = [*manifest.same_places, manifest.dataset_id]
    return make_manifest(content, shards, manifest.audit, environment)
