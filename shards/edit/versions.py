"""One version of a set replaces another: as a whole or not at all.

    .prep/version/             files of the version being made
    .prep/version/next.json    written once they are whole: from then on there is no going back
    versions/<id>.json         the manifests of all versions, by the first 12 digits of their ids

The files get their names, which no earlier version had; the manifest is replaced atomically; then
the files that the new version does not have are deleted. A kill before next.json leaves the old
version; a kill after it leaves one of the two, and the next command finishes the change.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.disk.durable import sync_folder, write_file
from shards.disk.json_files import Json, load_json
from shards.disk.layout import (
    MANIFEST,
    VERSIONS,
    WORK,
    append_folder,
    next_path,
    receipts_folder,
    version_folder,
    version_path,
)
from shards.format import Manifest, load_manifest, parse_manifest, read_manifest


@dataclass(frozen=True)
class NextVersion:
    """What is left to do once a version's files are whole."""

    # The text of its manifest.json.
    manifest: str
    # Files to rename into the set: (path below the set's folder, plain file name).
    moves: tuple[tuple[str, str], ...]
    # Files that the new version does not have.
    deletes: tuple[str, ...]
    # Folders below .prep that the version was made from, deleted last.
    clears: tuple[str, ...] = ()


def has_begun_append(folder: Path) -> bool:
    """Whether any of the sources to append have become shards already."""
    inner = append_folder(folder)
    return (inner / MANIFEST).exists() or any(receipts_folder(inner).glob("*"))


def begin_version(folder: Path) -> Path:
    """An empty folder for a version's files; what a killed command left is finished or cleared."""
    finish_version(folder)
    work = version_folder(folder)
    work.mkdir(parents=True)
    return work


def commit_version(folder: Path, following: NextVersion) -> Manifest:
    """Make `following` the set's version; its files must be whole and durable."""
    for source, name in following.moves:
        if (folder / name).exists():
            raise ValueError(
                f"{folder / name}: is in the way of a new version and not part of the set; "
                "move it away and run the same command again"
            )
        if not (folder / source).is_file():
            raise ValueError(
                f"{folder / source}: is missing, so the new version cannot be made; "
                f"remove {(folder / source).parent} and run the same command again"
            )
    for parent in {(folder / source).parent for source, _ in following.moves}:
        sync_folder(parent)
    version_folder(folder).mkdir(parents=True, exist_ok=True)
    write_file(next_path(folder), json.dumps(asdict(following)) + "\n")
    finish_version(folder)
    return read_manifest(folder)


def finish_version(folder: Path) -> bool:
    """Do what is left for a version whose files are whole; False if there is none."""
    path = next_path(folder)
    if not path.exists():
        if path.parent.exists():
            shutil.rmtree(path.parent)
        return False
    following = parse_next(path, load_json(path))
    for source, name in following.moves:
        if (folder / source).exists():
            os.replace(folder / source, folder / name)
    sync_folder(folder)
    keep_manifests(folder, following.manifest)
    write_file(folder / MANIFEST, following.manifest)
    for name in following.deletes:
        (folder / name).unlink(missing_ok=True)
    sync_folder(folder)
    for name in following.clears:
        shutil.rmtree(folder / name, ignore_errors=True)
    path.unlink()
    sync_folder(path.parent)
    shutil.rmtree(path.parent)
    return True


def keep_manifests(folder: Path, following: str) -> None:
    """Keep copies, in versions/, of the manifest about to be replaced and of the new one."""
    (folder / VERSIONS).mkdir(exist_ok=True)
    sync_folder(folder)
    for text in ((folder / MANIFEST).read_text(encoding="utf-8"), following):
        path = version_path(folder, parse_manifest(text, folder / MANIFEST).dataset_id)
        if not path.exists():
            write_file(path, text)


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


def parse_next(path: Path, raw: Json) -> NextVersion:
    """What `commit_version` wrote; ValueError if a name leads out of the folder."""
    following = NextVersion(
        raw["manifest"],
        tuple((a, b) for a, b in raw["moves"]),
        tuple(raw["deletes"]),
        tuple(raw.get("clears", [])),
    )
    names = [name for _, name in following.moves] + list(following.deletes)
    sources = [Path(source) for source, _ in following.moves]
    sources += [Path(cleared) for cleared in following.clears]
    plain = all(name == Path(name).name and "\\" not in name for name in names)
    inside = all(
        source.parts[:1] == (WORK,) and len(source.parts) > 1 and ".." not in source.parts
        for source in sources
    )
    if not plain or not inside:
        raise ValueError(f"{path}: names a file outside the set's folder; it was edited or damaged")
    return following


def name_next(name: str) -> str:
    """The name of the shard that replaces `name`.

    >>> name_next("train-00012.bin"), name_next("train-00012-001.r9.bin")
    ('train-00012.r1.bin', 'train-00012-001.r10.bin')
    """
    stem, dot, number = name.removesuffix(".bin").rpartition(".r")
    if dot and number.isdecimal():
        return f"{stem}.r{int(number) + 1}.bin"
    return f"{name.removesuffix('.bin')}.r1.bin"
