"""Versions of a set: which ones a later version may replace, and which files it then deletes."""

import re
from pathlib import Path

from shards.disk.layout import version_path
from shards.format import SPLITS, Manifest, load_manifest
from shards.schema import COPIES_FILE, list_copies

# The endings of files that a new version may replace.
ENDINGS = (".bin", ".bin.zst", ".docs.parquet")
# The names that prep, import, append and remove give to shards, with these endings.
SHARD_FILE = re.compile(
    rf"({'|'.join(SPLITS)})-[0-9]{{5,}}(-[0-9]+)?(\.r[0-9]+)?({'|'.join(map(re.escape, ENDINGS))})"
)


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
    """Whether this is the name of a file, a shard's or of copies, that a new version may delete.

    >>> is_replaceable("train-00012-001.r2.docs.parquet"), is_replaceable("thesis.bin")
    (True, False)
    """
    if not isinstance(name, str):
        return False
    return any(kind.fullmatch(name) for kind in (SHARD_FILE, COPIES_FILE))


def list_replaced(old: Manifest, new: Manifest) -> list[str]:
    """The files of `old` that `new` does not have.

    Raises ValueError if a shard differs under the same name: a version renames what it changes.
    """
    kept = {shard.name: shard.sha256 for shard in new.shards}
    replaced = [name for name in list_copies(old.audit) if name not in list_copies(new.audit)]
    for shard in old.shards:
        if shard.name not in kept:
            replaced += [shard.name, shard.sidecar]
        elif kept[shard.name] != shard.sha256:
            raise ValueError(
                f"{shard.name} differs between dataset_id {new.dataset_id[:16]} and its "
                f"earlier version {old.dataset_id[:16]}; choose a new place for it"
            )
    return replaced
