"""`velocity shards pull`: a set, or a part of it, from a URL to the local disk, verified.

manifest    read first, checked, and cut down to what was asked for
files       each to .pull/ under the set's folder; size and sha256 compared; fsync; rename
manifest    written last: from there on the set is complete

A file that lies there whole already is not fetched again, so the same command goes on after a
kill, mends a damaged set, and makes a later version of an earlier one. Names come from the
checked manifest and never leave the folder.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from shards.disk.durable import commit, hash_file, write_file
from shards.disk.url import refuse_url
from shards.edit.lineage import find_replaced, is_replaceable
from shards.edit.part import Part, cut_manifest
from shards.edit.versions import NextVersion, commit_version, lock_set
from shards.exchange.packing import PACKED, DamagedError, read_chunks, unpack
from shards.exchange.push import DEFAULT_WORKERS, UPLOAD, read_text
from shards.exchange.storage import Storage, StorageError, open_storage
from shards.exchange.transfer import Meter, check_workers, keep_trying, transfer_all
from shards.format import (
    MANIFEST,
    TOKEN_BYTES,
    TOKENIZER,
    Manifest,
    load_json,
    parse_json,
    parse_manifest,
)
from shards.screen import Say, format_bytes

# Where files lie that are on their way.
WORK = ".pull"
# In it: which files get a name in the folder before the manifest is there.
NAMES = "names.json"


@dataclass(frozen=True)
class Wanted:
    """A file of the set: what it must be, and what lies at the URL."""

    name: str
    num_bytes: int
    # None where the manifest does not say: sets that others made name no sidecar's hash.
    sha256: str | None
    # The object's name: the file's own, or with .zst behind it.
    stored: str

    @property
    def is_packed(self) -> bool:
        """Whether it lies there compressed."""
        return self.stored != self.name


def pull_shards(
    url: str,
    folder: Path,
    say: Say,
    split: str | None = None,
    part: Part | None = None,
    workers: int = DEFAULT_WORKERS,
) -> Manifest:
    """Bring the set at `url`, or one split or part of it, to `folder`; returns its manifest.

    Raises ValueError or OSError with one line; files that came whole stay, and are not fetched
    again.
    """
    check_workers(workers)
    refuse_url(folder)
    storage = open_storage(url)
    listed = storage.list_files()
    text, manifest = read_remote(storage, listed)
    if split is not None or part is not None:
        text = cut_manifest(manifest, split, part)
        manifest = parse_manifest(parse_json(text, MANIFEST), MANIFEST)
    wanted = list_wanted(storage, manifest, listed)
    has_set = (folder / MANIFEST).exists()
    with lock_set(folder) if has_set else nullcontext():
        replaced = find_replaced(folder, manifest)
        check_free(folder, wanted)
        fetched = pull_locked(storage, folder, say, (text, manifest), wanted, replaced, workers)
    say(f"{folder}: {len(wanted):,} files are whole, {fetched:,} of them fetched now")
    say(f"dataset_id {manifest.dataset_id}")
    return manifest


def pull_locked(
    storage: Storage,
    folder: Path,
    say: Say,
    described: tuple[str, Manifest],
    wanted: list[Wanted],
    replaced: list[str] | None,
    workers: int,
) -> int:
    """Fetch the files, and make the manifest the folder's; returns how many were fetched."""
    text, manifest = described
    with lock_folder(folder) as temporary:
        check_space(folder, wanted)
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
        for name in names - {file.name for file in wanted}:
            (folder / name).unlink(missing_ok=True)
    return fetched


def read_remote(storage: Storage, listed: dict[str, int]) -> tuple[str, Manifest]:
    """The manifest of the set at a URL, as text and checked."""
    if MANIFEST not in listed:
        if UPLOAD in listed:
            raise ValueError(
                f"{storage.name}: the upload of this set has not finished (no {MANIFEST}); "
                "run the command that uploads it again, it goes on where it stopped"
            )
        found = f"{len(listed):,} other files are" if listed else "nothing is"
        raise ValueError(
            f"{storage.name}: no {MANIFEST} there ({found}), so this is no set of shards; "
            "check the URL"
        )
    text = read_text(storage, MANIFEST)
    where = f"{storage.name}/{MANIFEST}"
    return text, parse_manifest(parse_json(text, where), where)


def list_wanted(storage: Storage, manifest: Manifest, listed: dict[str, int]) -> list[Wanted]:
    """The files of a set, each with the object that holds it.

    Raises ValueError where one has none, before anything is fetched.
    """
    sidecar_sha256 = manifest.environment.get("sidecar_sha256", {})
    tokenizer_sha256 = manifest.content["tokenizer"]["sha256"]
    wanted = [Wanted(TOKENIZER, listed.get(TOKENIZER, 0), tokenizer_sha256, TOKENIZER)]
    for shard in manifest.shards:
        size, packed = shard.num_tokens * TOKEN_BYTES, shard.name + PACKED
        stored = shard.name if listed.get(shard.name) == size or packed not in listed else packed
        wanted.append(Wanted(shard.name, size, shard.sha256, stored))
        name = shard.sidecar
        wanted.append(Wanted(name, listed.get(name, 0), sidecar_sha256.get(name), name))
    missing = [file.stored for file in wanted if file.stored not in listed]
    if missing:
        raise ValueError(
            f"{storage.name}/{missing[0]}: is missing there, "
            f"one of {len(missing):,} files that are; push the set again from where it is whole"
        )
    return wanted


def check_free(folder: Path, wanted: list[Wanted]) -> None:
    """ValueError where a file of another origin would be written over."""
    if (folder / MANIFEST).exists() or (folder / WORK).exists():
        return
    for file in wanted:
        if (folder / file.name).exists() and not is_whole(folder, file):
            raise ValueError(
                f"{folder / file.name}: is there already and no file of this set; nothing is "
                "written over, so choose a new folder, or move it away"
            )


def note_names(folder: Path, wanted: list[Wanted]) -> set[str]:
    """Note which files get a name, so that none is left over; with those of killed pulls."""
    path = folder / WORK / NAMES
    earlier = load_json(path).get("names", []) if path.exists() else []
    names = {name for name in earlier if is_replaceable(name)}
    names.update(file.name for file in wanted if is_replaceable(file.name))
    write_file(path, json.dumps({"names": sorted(names)}) + "\n")
    return names


@contextmanager
def lock_folder(folder: Path) -> Iterator[Path]:
    """Be the only pull into a folder; gives the place for unfinished files, emptied."""
    work = folder / WORK
    temporary = work / "tmp"
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            shutil.rmtree(work, ignore_errors=True)
    except Timeout:
        raise ValueError(
            f"{folder}: another velocity shards pull is at work there; wait for it, or stop it"
        ) from None


def check_space(folder: Path, wanted: list[Wanted]) -> None:
    """ValueError where the disk cannot hold what is not there yet."""
    needed = sum(file.num_bytes for file in wanted if not has_size(folder, file))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{folder}: {format_bytes(needed)} are to come and {format_bytes(free)} are free; "
            "free some, choose another folder, or take a part with --split or --part"
        )


def has_size(folder: Path, file: Wanted) -> bool:
    """Whether a file lies there with the size that it must have."""
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.num_bytes


def is_whole(folder: Path, file: Wanted) -> bool:
    """Whether a file lies there whole, as far as the manifest says."""
    return has_size(folder, file) and file.sha256 in (None, hash_file(folder / file.name))


def fetch_files(
    storage: Storage, folder: Path, temporary: Path, wanted: list[Wanted], workers: int
) -> int:
    """Fetch all files that are not there whole; returns how many these were.

    Raises ValueError naming the damaged ones when all others are there.
    """
    meter = Meter(len(wanted), sum(file.num_bytes for file in wanted))
    fetched = []

    def work(file: Wanted, meter: Meter) -> str | None:
        if is_whole(folder, file):
            meter.add(file.num_bytes, moved=False)
            return None
        fault = fetch_file(storage, file, temporary / file.name, meter)
        if fault is None:
            commit(temporary / file.name, folder / file.name)
            fetched.append(file.name)
        return fault

    faults = list(transfer_all(wanted, work, meter, workers))
    if faults:
        raise ValueError(
            f"{faults[0]} (one of {len(faults):,} damaged files; all others are in {folder}); "
            "remove it there, and push the set again from where it is whole"
        )
    return len(fetched)


def fetch_file(storage: Storage, file: Wanted, target: Path, meter: Meter) -> str | None:
    """Fetch a file to `target`, durably; returns what is wrong with it, if anything.

    A file that comes wrong is fetched once more: it may be the way, and not the object.
    """
    fault = None
    for _ in range(2):
        fault = keep_trying(lambda: copy_file(storage, file, target, meter), meter)
        if fault is None:
            return None
    target.unlink(missing_ok=True)
    return f"{storage.name}/{file.stored}: {fault}"


def copy_file(storage: Storage, file: Wanted, target: Path, meter: Meter) -> str | None:
    """Copy and unpack an object once; returns what is wrong with it, if anything."""
    sha256, size = hashlib.sha256(), 0
    fault: str | None = "is incomplete"
    try:
        with storage.open(file.stored) as source, open(target, "wb") as out:
            for chunk in unpack(source) if file.is_packed else read_chunks(source):
                meter.add(len(chunk))
                size += len(chunk)
                sha256.update(chunk)
                out.write(chunk)
                if size > file.num_bytes:
                    break
            out.flush()
            os.fsync(out.fileno())
        fault = find_fault(file, size, sha256.hexdigest())
    except DamagedError as error:
        fault = str(error)
    except StorageError:
        raise
    except OSError as error:
        raise ValueError(
            f"{target}: could not be written ({error.strerror or error}); free some disk and run "
            "the same command again, what is whole stays"
        ) from error
    finally:
        if fault is not None:
            meter.take_back(size)
    return fault


def find_fault(file: Wanted, size: int, sha256: str) -> str | None:
    """What is wrong with a file of this size and sha256, if anything."""
    if size != file.num_bytes:
        more = "more than " if size > file.num_bytes else ""
        return f"has {more}{min(size, file.num_bytes):,} bytes; expected {file.num_bytes:,}"
    if file.sha256 not in (None, sha256):
        return "its sha256 is not the manifest's"
    return None
