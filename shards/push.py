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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from shards.durable import hash_file
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
from shards.lineage import list_ancestors, list_replaced
from shards.packing import PACKED, TRAILER_BYTES, make_trailer, pack, read_chunks
from shards.screen import format_bytes
from shards.storage import Storage, open_storage
from shards.transfer import Meter, check_workers, keep_trying, transfer_all

Say = Callable[[str], None]

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
    manifest = read_manifest(folder)
    storage = open_storage(url)
    listed = storage.list_files()
    files = list_local(folder, manifest)
    replaced = claim(storage, listed, manifest, find_plan(folder))
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
    complete(storage, (folder / MANIFEST).read_bytes(), replaced)
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


def claim(
    storage: Storage, listed: dict[str, int], manifest: Manifest, plan: str | None
) -> list[str]:
    """Make the URL this set's own, before the first of its files is sent.

    `plan` is the owner's name that prep gave while the set was being made. Returns the objects
    that go when the set is complete: those of an earlier version that lay there. Raises ValueError
    where another set lies there, or is on its way there.
    """
    note = read_note(storage) if UPLOAD in listed else None
    if note is not None and note.owner in (manifest.dataset_id, plan):
        return note.replaced
    if note is not None:
        refuse(storage, "holds an upload of another set that has not finished")
    names = [name for shard in manifest.shards for name in (shard.name, shard.sidecar)]
    replaced: list[str] = []
    if MANIFEST in listed:
        found = read_remote_manifest(storage)
        if found.dataset_id == manifest.dataset_id:
            return []
        if found.dataset_id not in list_ancestors(manifest):
            refuse(storage, f"holds another set (dataset_id {found.dataset_id[:16]})")
        old = list_replaced(found, manifest)
        replaced = [form for name in old for form in (name, name + PACKED) if form in listed]
    elif taken := [name for name in names if name in listed or name + PACKED in listed]:
        refuse(storage, f"holds a file {taken[0]} of another origin")
    write_note(storage, Note(manifest.dataset_id, replaced))
    return replaced


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


def read_note(storage: Storage) -> Note:
    """What upload.json says; names in it that are none of a set's count for nothing."""
    where = f"{storage.name}/{UPLOAD}"
    raw = parse_json(read_text(storage, UPLOAD), where)
    replaced = [name for name in raw.get("replaced", []) if name == Path(name).name]
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
