"""A part of a set as a set of its own: one split, or every n-th shard of each split.

Its manifest has the same content with fewer shards, and so a dataset_id of its own, and names the
set it was cut from in `content["parent"]`. The audit and the sources are still those of the whole
set: they say where the documents came from, and `parent` says that not all of them are here.
"""

from shards.disk.part import Part
from shards.format import SPLITS, Manifest, check_split
from shards.parent import PART, Parent


def cut_manifest(manifest: Manifest, split: str | None, part: Part | None) -> str:
    """The manifest, as text, of one split or of a part of each split.

    Raises ValueError if it would have no shards.
    """
    if split is not None:
        check_split(split)
    step = part or Part(0, 1)
    shards = [
        shard
        for name in SPLITS
        if split in (name, None)
        for shard in manifest.split(name)[step.number :: step.count]
    ]
    if not shards:
        counts = ", ".join(f"{len(manifest.split(name)):,} {name}" for name in SPLITS)
        raise ValueError(f"the set has {counts} shards, so the part asked for is empty")
    parent = Parent(
        manifest.dataset_id,
        PART,
        split=split,
        part=str(part) if part else None,
        ancestors=sorted(manifest.ancestors) or None,  # This may replace the same part of one.
    )
    # In a whole split, tokens are where the whole set has them; in a part they are not.
    audit = {key: value for key, value in manifest.audit.items() if key != "copies"}
    return manifest.next_version(parent, shards, {}, audit, keeps_places=part is None)
