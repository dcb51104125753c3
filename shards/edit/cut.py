"""A part of a set as a set of its own: one split, or every n-th shard of each split.

Its manifest has the same content with fewer shards, so its own dataset_id, and names the set that
it was cut from in `content["parent"]`. The audit and the sources stay the whole set's: they say
how the documents came about, and `parent` says that not all of them are here.
"""

from shards.format import PART, SPLITS, Manifest, Parent
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
    parent = Parent(
        manifest.dataset_id,
        PART,
        split=split,
        part=str(part) if part else None,
        ancestors=sorted(manifest.ancestors) or None,  # Whose same part this one may replace.
    )
    # A split that is whole has its tokens where the whole set has them.
    return manifest.next_version(parent, shards, {}, manifest.audit, keeps_places=part is None)
