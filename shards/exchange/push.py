"""`velocity shards push`: a finished set from the local disk to a URL.

upload.json   first: whose files these are, so that no other set is mixed in
files         each compared with the manifest before it is sent; a .bin compressed if wished
manifest      last: from there on the set at the URL is complete; upload.json goes

A URL that holds an earlier version of the set becomes this one: only files that are new are sent,
and those that are no longer in the set are deleted behind the manifest.

A file that lies there whole already is not sent again, so the same command goes on after a kill.
Objects appear when they are whole: by the storage's own rule, and by a rename in plain folders.
"""

import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from shards.disk.durable import hash_file
from shards.edit.lineage import ENDINGS, is_later, is_replaceable, list_replaced, read_earlier
from shards.edit.versions import WORK, lock_set
from shards.exchange.packing import PACKED, TRAILER_BYTES, make_trailer, pack, read_chunks
from shards.exchange.storage import Storage, open_storage
from shards.exchange.transfer import Meter, check_workers, keep_trying, transfer_all
from shards.format import (
    MANIFEST,
    TOKEN_BYTES,
    TOKENIZER,
    Manifest,
    Shard,
    load_json,
    parse_json,
    parse_manifest,
    read_manifest,
)
from shards.screen import Say, format_bytes

# Where an upload that has not finished says whose it is.
UPLOAD = "upload.json"
DEFAULT_WORKERS = 8


@dataclass(frozen=True)
class Note:
    """upload.json: whose files are on their way, and which go when these are there."""

    # A dataset_id, or a plan's.
    owner: str
    replaced: list[str]


@dataclass(frozen=True)
class LocalFile:
    """A file of a set that is to be sent."""

    path: Path
    num_bytes: int
    # None where the manifest does not say.
    sha256: str | None

    @property
    def can_pack(self) -> bool:
        """Whether compressing it saves something: parquet is compressed already."""
        return self.path.suffix == ".bin"


def push_shards(
    folder: Path,
    url: str,
    say: Say,
    compress: bool = False,
    workers: int = DEFAULT_WORKERS,
) -> Manifest:
    """Send the finished set in `folder` to `url`; returns its manifest.

    Raises ValueError or OSError with one line; what was sent whole stays, and is not sent again.
    """
    check_workers(workers)
    read_manifest(folder)  # So that a folder without a set is told as such, and left as it is.
    storage = open_storage(url)
    listed = storage.list_files()
    with lock_source(folder):
        return push_locked(folder, storage, listed, say, compress, workers)


@contextmanager
def lock_source(folder: Path) -> Iterator[None]:
    """Keep other commands from changing the set that is sent, where one may write beside it."""
    lock = folder / WORK / "lock"
    places = [place for place in (lock, lock.parent, folder) if place.exists()]
    if os.access(places[0], os.W_OK):
        with lock_set(folder):
            yield
    else:
        yield


def push_locked(
    folder: Path, storage: Storage, listed: dict[str, int], say: Say, compress: bool, workers: int
) -> Manifest:
    """Send the set, and at last the very manifest that was read at first."""
    text = (folder / MANIFEST).read_bytes()
    manifest = parse_manifest(
        parse_json(text.decode("utf-8"), folder / MANIFEST), folder / MANIFEST
    )
    files = list_local(folder, manifest)
    replaced = claim(storage, listed, manifest, folder)
    clear_temporaries(storage, listed)
    meter = Meter(len(files), sum(file.num_bytes for file in files))
    size = format_bytes(meter.num_bytes)
    say(f"{folder}: {len(manifest.shards):,} shards, {size}, to {storage.name}")
    sent = []

    def work(file: LocalFile, meter: Meter) -> str | None:
        if is_there(storage, listed, file):
            meter.add(file.num_bytes, moved=False)
        else:
            keep_trying(lambda: send_file(storage, file, compress, meter), meter)
            sent.append(file.path.name)
        return None

    for _ in transfer_all(files, work, meter, workers):
        raise AssertionError
    complete(storage, text, replaced)
    say(f"{storage.name}: {len(files):,} files are there, {len(sent):,} of them sent now")
    say(f"dataset_id {manifest.dataset_id}")
    return manifest


def list_local(folder: Path, manifest: Manifest) -> list[LocalFile]:
    """The files of a set; ValueError where one is missing or has another size."""
    sidecar_sha256 = manifest.environment.get("sidecar_sha256", {})
    files = [check_file(folder / TOKENIZER, None, manifest.content["tokenizer"]["sha256"])]
    for shard in manifest.shards:
        files += list_shard(folder, shard, sidecar_sha256.get(shard.sidecar))
    return files


def list_shard(folder: Path, shard: Shard, sidecar_sha256: str | None) -> list[LocalFile]:
    """The two files of a shard; ValueError where one is missing or has another size."""
    return [
        check_file(folder / shard.sidecar, None, sidecar_sha256),
        check_file(folder / shard.name, shard.num_tokens * TOKEN_BYTES, shard.sha256),
    ]


def check_file(path: Path, num_bytes: int | None, sha256: str | None) -> LocalFile:
    """A file to be sent, found with the size that it must have."""
    found = path.stat().st_size if path.is_file() else None
    if found is None or found != (num_bytes if num_bytes is not None else found):
        state = "is missing" if found is None else f"has {found:,} bytes"
        raise ValueError(
            f"{path} {state}; see what else is damaged with: velocity shards verify {path.parent}"
        )
    return LocalFile(path, found, sha256)


def name_plan(plan_id: str) -> str:
    """How upload.json calls a set that prep is still making, which has no dataset_id yet."""
    return f"plan {plan_id}"


def find_plan(folder: Path) -> str | None:
    """The owner's name under which prep sent files of the set in `folder`, if it made it."""
    path = folder / ".prep" / "plan.json"
    return name_plan(load_json(path)["plan_id"]) if path.exists() else None


def claim(storage: Storage, listed: dict[str, int], manifest: Manifest, folder: Path) -> list[str]:
    """Make the URL this set's own, before the first of its files is sent.

    Returns the objects that go when the set is complete: those of an earlier version that lay
    there, or was on its way there. Raises ValueError where another set lies there, or is on its
    way there.
    """
    names = {name for shard in manifest.shards for name in (shard.name, shard.sidecar)}
    note = read_note(storage, names) if UPLOAD in listed else None
    earlier: list[Manifest] = []
    if note is not None:
        earlier, plan = read_earlier(folder, manifest), find_plan(folder)
        if note.owner == manifest.dataset_id or (note.owner == plan and not earlier):
            return note.replaced
        if note.owner not in (plan, *(version.dataset_id for version in earlier)):
            refuse(storage, "holds an upload of another set that has not finished")
    if MANIFEST in listed:
        found = read_remote_manifest(storage)
        if found.dataset_id == manifest.dataset_id:
            if note is None:
                return []
        elif not is_later(manifest, found):
            refuse(storage, f"holds another set (dataset_id {found.dataset_id[:16]})")
        earlier.append(found)
    elif note is None:
        for name in names & {form.removesuffix(PACKED) for form in listed}:
            refuse(storage, f"holds a file {name} of another origin")
    old = {name for version in earlier for name in list_replaced(version, manifest)}
    forms = {form for name in old for form in (name, name + PACKED) if form in listed}
    replaced = sorted(forms.union(note.replaced if note is not None else ()))
    write_note(storage, Note(manifest.dataset_id, replaced))
    return replaced


def clear_temporaries(storage: Storage, listed: dict[str, int]) -> None:
    """Remove what killed uploads left in a plain folder: files that never got their names."""
    for name in listed:
        found = re.fullmatch(r"\.(.+)\.\d+\.tmp", name)
        if found and found[1].endswith((*ENDINGS, MANIFEST, TOKENIZER, UPLOAD)):
            storage.delete(name)


def refuse(storage: Storage, state: str) -> NoReturn:
    """ValueError for a URL that is taken."""
    raise ValueError(
        f"{storage.name}: {state}; nothing is written over, so choose another URL, "
        "or remove what is there"
    )


def read_remote_manifest(storage: Storage) -> Manifest:
    """The manifest of the set at a URL, checked."""
    where = f"{storage.name}/{MANIFEST}"
    return parse_manifest(parse_json(read_text(storage, MANIFEST), where), where)


def read_text(storage: Storage, name: str) -> str:
    """A small text file."""
    try:
        return storage.read_bytes(name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{storage.name}/{name}: no valid JSON ({error})") from None


def read_note(storage: Storage, kept: Collection[str] = ()) -> Note:
    """What upload.json says; ValueError where a file is to go that is `kept`, or no set's."""
    where = f"{storage.name}/{UPLOAD}"
    raw = parse_json(read_text(storage, UPLOAD), where)
    replaced = raw.get("replaced", [])
    wrong = [
        name
        for name in (replaced if isinstance(replaced, list) else [replaced])
        if not is_replaceable(name) or name.removesuffix(PACKED) in kept
    ]
    if wrong or not isinstance(replaced, list):
        raise ValueError(
            f"{where}: says that {[*wrong, replaced][0]!r} is to be deleted, which no upload does; "
            "it was edited or damaged, so remove it and push again"
        )
    return Note(str(raw.get("owner")), replaced)


def write_note(storage: Storage, note: Note) -> None:
    """Write upload.json."""
    storage.write(UPLOAD, [json.dumps(asdict(note)).encode()])


def is_there(storage: Storage, listed: dict[str, int], file: LocalFile) -> bool:
    """Whether a file lies whole at the URL already, compressed or not."""
    name = file.path.name
    if listed.get(name) == file.num_bytes:
        return True
    if not file.can_pack or name + PACKED not in listed or file.sha256 is None:
        return False
    return storage.read_tail(name + PACKED, TRAILER_BYTES) == make_trailer(file.sha256)


def send_file(storage: Storage, file: LocalFile, compress: bool, meter: Meter) -> str:
    """Send a file once it is seen to be what the manifest says; returns its object's name."""
    found = hash_file(file.path)
    if file.sha256 not in (None, found):
        raise ValueError(
            f"{file.path}: its sha256 is not the manifest's, so it is not sent; "
            f"see what else is damaged with: velocity shards verify {file.path.parent}"
        )
    packed = compress and file.can_pack
    name = file.path.name + (PACKED if packed else "")
    chunks = pack(file.path, found) if packed else read_file(file.path)
    storage.write(name, chunks)
    meter.add(file.num_bytes)
    return name


def read_file(path: Path) -> Iterator[bytes]:
    """The bytes of a file, in pieces."""
    with open(path, "rb") as file:
        yield from read_chunks(file)


def complete(storage: Storage, manifest: bytes, replaced: list[str]) -> None:
    """Write the manifest: from here on the set at the URL is complete. Then tidy up."""
    storage.write(MANIFEST, [manifest])
    for name in replaced:
        storage.delete(name)
    storage.delete(UPLOAD)
