"""Versions of a set: which ones another takes the place of, and which files go with them."""

from shards.format import Manifest


def list_ancestors(manifest: Manifest) -> set[str]:
    """The dataset_ids of which this set is a later version; a part of a set is none."""
    parent = manifest.content.get("parent", {})
    if not parent or parent.get("change") == "part":
        return set()
    return {parent["dataset_id"], *manifest.same_places}


def list_replaced(old: Manifest, new: Manifest) -> list[str]:
    """The files of `old` that `new` does not have.

    Raises ValueError where a file of one name differs: versions give a changed shard a new name.
    """
    kept = {shard.name: shard.sha256 for shard in new.shards}
    replaced = []
    for shard in old.shards:
        if shard.name not in kept:
            replaced += [shard.name, shard.sidecar]
        elif kept[shard.name] != shard.sha256:
            raise ValueError(
                f"{shard.name} is another one in dataset_id {new.dataset_id[:16]} than in its "
                f"earlier version {old.dataset_id[:16]}; choose a new place for it"
            )
    return replaced
