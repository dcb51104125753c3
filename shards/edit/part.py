"""A part of a set as a set of its own: one split, or every n-th shard of each split.

Its manifest has the same content with fewer shards, so its own dataset_id, and names the set that
it was cut from in `content["parent"]`. The audit and the sources stay the whole set's: they say
how the documents came about, and `parent` says that not all of them are here.
"""

import re
from dataclasses import dataclass

from shards.edit.lineage import list_ancestors
from shards.format import SPLITS, Json, Manifest, make_manifest


@dataclass(frozen=True)
class Part:
    """Every `count`-th of what is numbered from 0 on, from `number` on."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def choose(self, total: int) -> range:
        """Its numbers below `total`.

        >>> list(Part(1, 3).choose(8))
        [1, 4, 7]
        """
        return range(self.number, total, self.count)


def parse_part(text: str) -> Part:
    """A part from its form on the command line.

    >>> parse_part("3/8")
    Part(number=3, count=8)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part = Part(int(match[1]), int(match[2])) if match else None
    if part is None or part.number >= part.count:
        raise ValueError(
            f"--part is {text}; expected i/n with i from 0 to n - 1, such as 0/4, 1/4, 2/4, 3/4"
        )
    return part


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
        for shard in manifest.split(name)[step.number :: step.count]
    ]
    if not shards:
        counts = ", ".join(f"{len(manifest.split(name)):,} {name}" for name in SPLITS)
        raise ValueError(f"the set has {counts} shards, so nothing is in the part asked for")
    parent: Json = {"dataset_id": manifest.dataset_id, "change": "part"}
    if split is not None:
        parent["split"] = split
    if part is not None:
        parent["part"] = str(part)
    if ancestors := sorted(list_ancestors(manifest)):  # Whose same part this one may replace.
        parent["ancestors"] = ancestors
    here = {shard.sidecar for shard in shards}
    sidecars = manifest.environment.get("sidecar_sha256", {})
    environment = manifest.environment | {
        "sidecar_sha256": {name: sha256 for name, sha256 in sidecars.items() if name in here}
    }
    gone = ("same_places", "ancestors")
    content = {key: value for key, value in manifest.content.items() if key not in gone}
    content["parent"] = parent
    if part is None:  # A split that is whole has its tokens where the whole set has them.
        content["same_places"] = [*manifest.same_places, manifest.dataset_id]
    return make_manifest(content, shards, manifest.audit, environment)
