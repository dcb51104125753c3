"""One version of a set replaces another: as a whole or not at all.

    .prep/version/             files of the version being made
    .prep/version/next.json    written once they are whole: from then on there is no going back
    versions/<id>.json         the manifests of all versions, by the first 12 digits of their ids

The files get their names, which no earlier version had; the manifest is replaced atomically; then
the files that the new version does not have are deleted. A kill before next.json leaves the old
version; a kill after it leaves one of the two, and the next command finishes the change.
"""

import os
from pathlib import Path

from shards.disk.durable import sync_folder, write_file
from shards.disk.folders import make_folder, remove
from shards.disk.layout import (
    MANIFEST,
    VERSIONS,
    append_folder,
    list_arrays,
    next_path,
    receipts_folder,
    version_folder,
    version_path,
    work_folder,
)
from shards.edit.lineage import is_later, list_replaced
from shards.edit.next_version import NextVersion, check_files, find_fault, read_next, write_next
from shards.format import Manifest, load_manifest, parse_manifest, read_manifest


def has_begun_append(folder: Path) -> bool:
    """Whether any of the sources to append have become shards already."""
    inner = append_folder(folder)
    return (inner / MANIFEST).exists() or any(receipts_folder(inner).glob("*"))


def begin_version(folder: Path) -> Path:
    """An empty folder for a version's files; what a killed command left is finished or cleared."""
    finish_version(folder)
    work = version_folder(folder)
    make_folder(work)
    return work


def commit_version(folder: Path, following: NextVersion) -> Manifest:
    """Make `following` the set's version; its files must be whole and durable."""
    fault = find_fault(folder, following)
    if fault is not None:
        raise ValueError(f"{folder}: no new version can be made of this set: {fault}")
    check_files(folder, following, hashes=False)
    for parent in {(folder / source).parent for source, _ in following.moves}:
        sync_folder(parent)
    make_folder(version_folder(folder))
    write_next(folder, following)
    replace_version(folder, following)
    return read_manifest(folder)


def finish_version(folder: Path) -> bool:
    """Do what is left for a version whose files are whole; False if there is none."""
    following = read_next(folder)
    if following is None:
        remove(version_folder(folder))
        return False
    replace_version(folder, following)
    return True


def replace_version(folder: Path, following: NextVersion) -> None:
    """Do what next.json says, from wherever a kill left it."""
    for source, name in following.moves:
        if (folder / source).exists():
            os.replace(folder / source, folder / name)
    sync_folder(folder)
    keep_manifests(folder, following.manifest)
    write_file(folder / MANIFEST, following.manifest)
    for name in following.deletes:
        (folder / name).unlink(missing_ok=True)
        for path in list_arrays(folder, name):  # From which much of its text could be told.
            path.unlink(missing_ok=True)
    sync_folder(folder)
    for name in following.clears:
        remove(folder / name, ignore_errors=True)
    path = next_path(folder)
    path.unlink()
    sync_folder(path.parent)
    remove(path.parent)


def keep_manifests(folder: Path, following: str) -> None:
    """Keep copies, in versions/, of the manifest about to be replaced and of the new one."""
    make_folder(folder / VERSIONS)
    for text in ((folder / MANIFEST).read_text(encoding="utf-8"), following):
        path = version_path(folder, parse_manifest(text, folder / MANIFEST).dataset_id)
        if not path.exists():
            write_file(path, text)


def find_replaced(folder: Path, manifest: Manifest) -> list[str] | None:
    """The files to delete if `folder` has an earlier version of the set; None if it has none.

    Raises ValueError if another set is there, or prep is making one.
    """
    if not (folder / MANIFEST).exists():
        if work_folder(folder).exists():
            raise ValueError(
                f"{folder}: velocity prep is making a set there, or was stopped; "
                "choose a new folder"
            )
        return None
    finish_version(folder)
    found = read_manifest(folder)
    if found.dataset_id == manifest.dataset_id:
        return None
    if is_later(manifest, found):
        return list_replaced(found, manifest)
    raise ValueError(
        f"{folder}: holds another set (dataset_id {found.dataset_id[:16]}, "
        f"not {manifest.dataset_id[:16]}); choose a new folder"
    )


def find_version(folder: Path, manifest: Manifest, dataset_id: str) -> Manifest | None:
    """The version whose train split has as many tokens as `dataset_id` had, all still in place.

    None if `dataset_id` is not an earlier version, or if documents have been cut out since.
    Appended documents come after each split's tokens and move none of them.
    """
    while dataset_id != manifest.dataset_id and not keeps_places(folder, manifest, dataset_id):
        parent = manifest.parent
        if parent is None or not parent.moved_no_token:
            return None
        path = version_path(folder, parent.dataset_id)
        if not path.exists():
            return None
        manifest = load_manifest(path)
        if manifest.dataset_id != parent.dataset_id:
            return None
    return manifest


def keeps_places(folder: Path, manifest: Manifest, dataset_id: str) -> bool:
    """Whether every token left of the earlier version `dataset_id` is still where it was there.

    There are two proofs; anything else is False:

        dataset_id is                   proof
        an earlier version of this set  this manifest's same_places names it
        one split of such a version     its manifest, in versions/, is the same cut as this one, and
                                        this one's same_places names the set that it was cut from

    The second is needed on a node that pulled one split only. Its set and the one it had before are
    cuts with dataset_ids of their own, while same_places names whole sets. A part i/n has no
    same_places, because its tokens are not where the whole set has them.
    """
    path = version_path(folder, dataset_id)
    if dataset_id in manifest.same_places or not path.exists():
        return dataset_id in manifest.same_places
    earlier = load_manifest(path)
    was, now = earlier.parent, manifest.parent
    if was is None or now is None or earlier.dataset_id != dataset_id:
        return False
    return now.is_same_cut(was) and was.dataset_id in manifest.same_places


def list_versions(folder: Path, manifest: Manifest) -> list[Manifest]:
    """The manifests of all versions known here, the set's own first."""
    kept = sorted((folder / VERSIONS).glob("*.json"))
    return [manifest, *(load_manifest(path) for path in kept)]


def name_next(name: str) -> str:
    """The name of the shard that replaces `name`.

    >>> name_next("train-00012.bin"), name_next("train-00012-001.r9.bin")
    ('train-00012.r1.bin', 'train-00012-001.r10.bin')
    """
    stem, dot, number = name.removesuffix(".bin").rpartition(".r")
    if dot and number.isdecimal():
        return f"{stem}.r{int(number) + 1}.bin"
    return f"{name.removesuffix('.bin')}.r1.bin"
