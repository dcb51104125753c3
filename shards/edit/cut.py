"""A part of a set as a set of its own: one split, or every n-th shard of each split.

Its manifest has the same content with fewer shards, so its own dataset_id, and names the set that
it was cut from in `content["parent"]`. The audit and the sources stay the whole set's: they say
how the documents came about, and `parent` says that not all of them are here.
"""

from shards.edit.lineage import list_ancestors
from shards.format import SPLITS, Json, Manifest, make_manifest
from shards.part import Part


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
