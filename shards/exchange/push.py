"""`velocity shards push`: a finished set from the local disk to a URL.

upload.json   first: which set the files belong to, so that no other set is mixed in
files         each compared with the manifest before it is sent; .bin files compressed on request
manifest      last: from then on the set at the URL is complete, and upload.json is deleted

An earlier version of the set at the URL becomes this one: only new files are sent, and those no
longer in the set are deleted after the manifest is written.

A file that is already there whole is not sent again, so the same command resumes after a kill.
Objects appear once they are whole: by the storage's own rule, and by a rename in plain folders.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shards.disk.durable import hash_file
from shards.disk.layout import MANIFEST, TOKENIZER, set_lock
from shards.disk.lock import lock_set
from shards.exchange.claim import UPLOAD, claim, clear_temporaries
from shards.exchange.packing import PACKED, TRAILER_BYTES, make_trailer, pack, read_chunks
from shards.exchange.storage import Storage, open_storage
from shards.exchange.transfer import Meter, check_workers, keep_trying, transfer_all
from shards.format import Manifest, Shard, parse_manifest, read_manifest
from shards.schema import list_copies
from shards.screen.lines import Say, format_bytes
from shards.screen.names import advise_verify

DEFAULT_WORKERS = 8


@dataclass(frozen=True)
class LocalFile:
    """A file of a set to be sent."""

    path: Path
    num_bytes: int
    # None if the manifest does not say.
    sha256: str | None

    @property
    def can_pack(self) -> bool:
        """Whether compressing it is worthwhile: parquet is compressed already."""
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
    read_manifest(folder)  # An error here leaves a folder without a set untouched.
    storage = open_storage(url)
    listed = storage.list_files()
    with lock_source(folder):
        return push_locked(folder, storage, listed, say, compress, workers)


@contextmanager
def lock_source(folder: Path) -> Iterator[None]:
    """Keep other commands from changing the set while it is sent, if its folder is writable."""
    lock = set_lock(folder)
    places = [place for place in (lock, lock.parent, folder) if place.exists()]
    if os.access(places[0], os.W_OK):
        with lock_set(folder):
            yield
    else:
        yield


def push_locked(
    folder: Path, storage: Storage, listed: dict[str, int], say: Say, compress: bool, workers: int
) -> Manifest:
    """Send the set's files, then exactly the manifest that was read at the start."""
    text = (folder / MANIFEST).read_bytes()
    manifest = parse_manifest(text, folder / MANIFEST)
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

    faults = transfer_all(files, work, meter, workers)
    assert not faults, faults
    complete(storage, text, replaced)
    say(f"{storage.name}: {len(files):,} files are there, {len(sent):,} of them sent now")
    say(f"dataset_id {manifest.dataset_id}")
    return manifest


def list_local(folder: Path, manifest: Manifest) -> list[LocalFile]:
    """The files of a set; ValueError if one is missing or has the wrong size."""
    files = [check_file(folder / TOKENIZER, None, manifest.content["tokenizer"]["sha256"])]
    for shard in manifest.shards:
        files += list_shard(folder, shard, manifest.sidecar_sha256(shard))
    for name, sha256 in list_copies(manifest.audit).items():
        files.append(check_file(folder / name, None, sha256))
    return files


def list_shard(folder: Path, shard: Shard, sidecar_sha256: str | None) -> list[LocalFile]:
    """The two files of a shard; ValueError if one is missing or has the wrong size."""
    return [
        check_file(folder / shard.sidecar, None, sidecar_sha256),
        check_file(folder / shard.name, shard.num_bytes, shard.sha256),
    ]


def check_file(path: Path, num_bytes: int | None, sha256: str | None) -> LocalFile:
    """A file to be sent; ValueError if it is missing or has the wrong size."""
    found = path.stat().st_size if path.is_file() else None
    if found is None or found != (num_bytes if num_bytes is not None else found):
        state = "is missing" if found is None else f"has {found:,} bytes"
        raise ValueError(f"{path} {state}; {advise_verify(path.parent)}")
    return LocalFile(path, found, sha256)


def is_there(storage: Storage, listed: dict[str, int], file: LocalFile) -> bool:
    """Whether a file is already whole at the URL, compressed or not."""
    name = file.path.name
    if listed.get(name) == file.num_bytes:
        return True
    if not file.can_pack or name + PACKED not in listed or file.sha256 is None:
        return False
    return storage.read_tail(name + PACKED, TRAILER_BYTES) == make_trailer(file.sha256)


def send_file(storage: Storage, file: LocalFile, compress: bool, meter: Meter) -> str:
    """Check a file against the manifest, then send it; returns its object's name."""
    found = hash_file(file.path)
    if file.sha256 not in (None, found):
        raise ValueError(
            f"{file.path}: its sha256 is not the manifest's, so it is not sent; "
            f"{advise_verify(file.path.parent)}"
        )
    packed = compress and file.can_pack
    name = file.path.name + (PACKED if packed else "")
    chunks = pack(file.path, found) if packed else read_file(file.path)
    storage.write(name, chunks)
    meter.add(file.num_bytes)
    return name


def read_file(path: Path) -> Iterator[bytes]:
    """The bytes of a file, in pieces of CHUNK_BYTES."""
    with open(path, "rb") as file:
        yield from read_chunks(file)


def complete(storage: Storage, manifest: bytes, replaced: list[str]) -> None:
    """Write the manifest, which makes the set at the URL complete; then tidy up."""
    storage.write(MANIFEST, [manifest])
    for name in replaced:
        storage.delete(name)
    storage.delete(UPLOAD)
