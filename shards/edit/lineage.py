"""Versions of a set: which ones a later version may replace, and which files it then deletes."""

from pathlib import Path

from shards.disk.layout import version_path
from shards.format import Manifest, load_manifest

# The endings of files that a new version may replace.
ENDINGS = (".bin", ".bin.zst", ".docs.parquet")


def is_later(new: Manifest, old: Manifest) -> bool:
    """Whether `new` is a later version of `old`, or the same part of a later version."""
    if old.dataset_id in new.ancestors:
        return True
    after, before = new.parent, old.parent
    if after is None or before is None or not after.is_same_cut(before):
        return False
    return before.dataset_id in (after.dataset_id, *(after.ancestors or ()))


def read_earlier(folder: Path, manifest: Manifest) -> list[Manifest]:
    """The manifests of a set's earlier versions, as far as versions/ in `folder` has them."""
    paths = [version_path(folder, ancestor) for ancestor in sorted(manifest.ancestors)]
    return [load_manifest(path) for path in paths if path.exists()]


def is_replaceable(name: object) -> bool:
    """Whether this is a plain file name that a new version may delete."""
    if not isinstance(name, str) or not name.isprintable() or not name.endswith(ENDINGS):
        return False
    return name == Path(name).name and "\\" not in name and ".." not in name


def list_replaced(old: Manifest, new: Manifest) -> list[str]:
    """The files of `old` that `new` does not have.

    Raises ValueError if a shard differs under the same name: a version renames what it changes.
    """
    kept = {shard.name: shard.sha256 for shard in new.shards}
    replaced = []
    for shard in old.shards:
        if shard.name not in kept:
            replaced += [shard.name, shard.sidecar]
        elif kept[shard.name] != shard.sha256:
            raise ValueError(
                f"{shard.name} differs between dataset_id {new.dataset_id[:16]} and its "
                f"earlier version {old.dataset_id[:16]}; choose a new place for it"
            )
    return replaced
