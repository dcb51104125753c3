"""`velocity shards pull`: a set, or a part of it, from a URL to the local disk, verified.

manifest    read first, checked, and cut down to what was asked for
files       each to .pull/ under the set's folder; size and sha256 compared; fsync; rename
manifest    written last: from then on the set is complete
index       with --index, after the set

A file that is already there whole is not fetched again, so the same command resumes after a kill,
repairs a damaged set, and turns an earlier version into a later one. Names come from the checked
manifest and never lead out of the folder.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from shards.disk.durable import hash_file, write_file
from shards.disk.folders import make_folder, remove
from shards.disk.json_files import load_json
from shards.disk.layout import (
    CHAT_TEMPLATE,
    MANIFEST,
    TOKENIZER,
    index_folder,
    pull_folder,
    pull_lock,
    pull_names_path,
    pull_temporary_folder,
)
from shards.disk.lock import hold, lock_set
from shards.disk.part import Part
from shards.disk.space import check_space
from shards.edit.cut import cut_manifest
from shards.edit.lineage import is_replaceable
from shards.edit.next_version import NextVersion
from shards.edit.versions import commit_version, find_replaced
from shards.exchange.arrays import list_remote, pull_index, read_remote_index
from shards.exchange.claim import UPLOAD
from shards.exchange.fetch import RemoteFile, fetch_files, has_size, is_whole
from shards.exchange.packing import PACKED
from shards.exchange.push import DEFAULT_WORKERS
from shards.exchange.storage import Storage, open_storage
from shards.exchange.transfer import check_workers
from shards.format import Manifest, parse_manifest
from shards.index.contents import Arrays
from shards.schema import list_copies
from shards.screen.lines import Say, format_bytes
from shards.screen.url import refuse_url


def pull_shards(
    url: str,
    folder: Path,
    say: Say,
    split: str | None = None,
    part: Part | None = None,
    workers: int = DEFAULT_WORKERS,
    with_index: bool = False,
) -> Manifest:
    """Download the set at `url`, or a split or part of it, to `folder`; returns its manifest.

    With `with_index` its index as well, as far as it is over these shards.

    Raises ValueError or OSError with one line; files that arrived whole stay, and are not fetched
    again.
    """
    check_workers(workers)
    refuse_url(folder)
    storage = open_storage(url)
    listed = storage.list_files()
    text, manifest = read_remote(storage, listed)
    arrays = read_remote_index(storage, manifest) if with_index else None
    if split is not None or part is not None:
        text = cut_manifest(manifest, split, part)
        manifest = parse_manifest(text, MANIFEST)
    wanted = list_wanted(storage, manifest, listed)
    if arrays is not None:
        here = {shard.name for shard in manifest.shards}
        arrays = {entry: digests for entry, digests in arrays.items() if entry.shard.name in here}
    has_set = (folder / MANIFEST).exists()
    with lock_set(folder) if has_set else nullcontext():
        replaced = find_replaced(folder, manifest)
        check_free(folder, wanted)
        with lock_folder(folder) as temporary:
            check_disk(folder, wanted, arrays)
            described = (text, manifest)
            fetched = pull_set(
                storage, folder, temporary, say, described, wanted, replaced, workers
            )
            say(f"{folder}: {len(wanted):,} files are whole, {fetched:,} of them fetched now")
            say(f"dataset_id {manifest.dataset_id}")
            if arrays is not None:
                pull_index(storage, folder, temporary, say, manifest, arrays, workers)
    return manifest


def check_disk(folder: Path, wanted: list[RemoteFile], arrays: Arrays | None) -> None:
    """ValueError if what is not there yet does not fit on the disk."""
    missing = sum(file.num_bytes for file in wanted if not has_size(folder, file))
    inner = index_folder(folder)
    missing += sum(f.num_bytes for f in list_remote(arrays or {}) if not has_size(inner, f))
    check_space(folder, missing, "choose another folder, or take a part with --split or --part")


def pull_set(
    storage: Storage,
    folder: Path,
    temporary: Path,
    say: Say,
    described: tuple[str, Manifest],
    wanted: list[RemoteFile],
    replaced: list[str] | None,
    workers: int,
) -> int:
    """Fetch the files, then put the manifest in place; returns how many files were fetched."""
    text, manifest = described
    names = note_names(folder, wanted)
    say(
        f"{storage.name}: {len(manifest.shards):,} shards, "
        f"{format_bytes(sum(file.num_bytes for file in wanted))}, to {folder}"
    )
    fetched = fetch_files(storage, folder, temporary, wanted, workers)
    if replaced is None:
        write_file(folder / MANIFEST, text)
    else:
        commit_version(folder, NextVersion(text, (), tuple(replaced)))
    here = {file.name for file in wanted}
    clear_left_over(folder, {name: sha for name, sha in names.items() if name not in here})
    return fetched


def read_remote(storage: Storage, listed: dict[str, int]) -> tuple[str, Manifest]:
    """The manifest of the set at a URL, as text and checked."""
    if MANIFEST not in listed:
        if UPLOAD in listed:
            raise ValueError(
                f"{storage.name}: the upload of this set has not finished (no {MANIFEST}); "
                "run the command that uploads it again, it resumes where it stopped"
            )
        found = f"{len(listed):,} other files are" if listed else "nothing is"
        raise ValueError(
            f"{storage.name}: no {MANIFEST} there ({found}), so this is not a set of shards; "
            "check the URL"
        )
    text = storage.read_bytes(MANIFEST)
    manifest = parse_manifest(text, f"{storage.name}/{MANIFEST}")
    return text.decode("utf-8"), manifest


def list_wanted(storage: Storage, manifest: Manifest, listed: dict[str, int]) -> list[RemoteFile]:
    """The files of a set, each with the object that holds it.

    Raises ValueError if one is missing there, before anything is fetched.
    """
    tokenizer_sha256 = manifest.content["tokenizer"]["sha256"]
    wanted = [RemoteFile(TOKENIZER, listed.get(TOKENIZER, 0), tokenizer_sha256, TOKENIZER)]
    if manifest.chat is not None:
        size, sha256 = listed.get(CHAT_TEMPLATE, 0), manifest.chat["template_sha256"]
        wanted.append(RemoteFile(CHAT_TEMPLATE, size, sha256, CHAT_TEMPLATE))
    for shard in manifest.shards:
        size, packed = shard.num_bytes, shard.name + PACKED
        stored = shard.name if listed.get(shard.name) == size or packed not in listed else packed
        wanted.append(RemoteFile(shard.name, size, shard.sha256, stored))
        name = shard.sidecar
        wanted.append(RemoteFile(name, listed.get(name, 0), manifest.sidecar_sha256(shard), name))
    for name, sha256 in list_copies(manifest.audit).items():
        wanted.append(RemoteFile(name, listed.get(name, 0), sha256, name))
    missing = [file.stored for file in wanted if file.stored not in listed]
    if missing:
        raise ValueError(
            f"{storage.name}/{missing[0]}: is missing there, "
            f"one of {len(missing):,} missing files; push the set again from a whole copy"
        )
    return wanted


def check_free(folder: Path, wanted: list[RemoteFile]) -> None:
    """ValueError if a file that is not the set's would be overwritten."""
    if (folder / MANIFEST).exists() or pull_folder(folder).exists():
        return
    for file in wanted:
        if (folder / file.name).exists() and not is_whole(folder, file):
            raise ValueError(
                f"{folder / file.name}: already exists and is not this set's; nothing is "
                "overwritten, so choose a new folder, or move it away"
            )


def note_names(folder: Path, wanted: list[RemoteFile]) -> dict[str, str]:
    """Note which files are to come, so that none is left over; returns killed pulls' too.

    The sha256 beside each name proves later that a file is what a pull put there. Where the
    manifest has none, and in notes of earlier releases, nothing is proved, so such files stay.
    """
    path = pull_names_path(folder)
    raw = load_json(path) if path.exists() else {}
    noted = raw.get("files", {})
    if not isinstance(noted, dict) or not all(
        is_replaceable(name) and isinstance(sha256, str) for name, sha256 in noted.items()
    ):
        raise ValueError(
            f"{path}: does not list files of a set, each with its sha256; it was edited or "
            "damaged, so remove it and run the same command again"
        )
    files = {f.name: f.sha256 for f in wanted if f.sha256 is not None and is_replaceable(f.name)}
    # Of two versions' files of one name, neither is left over while the name is wanted.
    files = noted | files
    write_file(path, json.dumps({"files": files}, sort_keys=True) + "\n")
    return files


def clear_left_over(folder: Path, left: dict[str, str]) -> None:
    """Delete what killed pulls of other versions put there, if it still has its sha256."""
    for name, sha256 in left.items():
        path = folder / name
        if path.is_file() and not path.is_symlink() and hash_file(path) == sha256:
            path.unlink()


@contextmanager
def lock_folder(folder: Path) -> Iterator[Path]:
    """Be the only pull into a folder; yields an empty folder for unfinished files."""
    temporary = pull_temporary_folder(folder)
    found = f"{folder}: another velocity shards pull is running there"
    with hold(folder, pull_lock(folder), found):
        remove(temporary, ignore_errors=True)
        make_folder(temporary)
        yield temporary
        remove(pull_folder(folder), ignore_errors=True)
