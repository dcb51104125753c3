"""`velocity shards push`: a finished set from the local disk to a URL.

upload.json   first: which set the files belong to, so that no other set is mixed in
files         each compared with the manifest before it is sent; .bin files compressed on request
manifest      last: from then on the set at the URL is complete, and upload.json is deleted

An earlier version of the set at the URL becomes this one: only new files are sent, and those no
longer in the set are deleted after the manifest is written, with their arrays of an index.

A file that is already there whole is not sent again, so the same command resumes after a kill.
Objects appear once they are whole: by the storage's own rule, and by a rename in plain folders.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.disk.layout import CHAT_TEMPLATE, INDEX, MANIFEST, TOKENIZER, set_lock
from shards.disk.lock import lock_set
from shards.exchange.arrays import clear_arrays, list_arrays, push_index
from shards.exchange.claim import UPLOAD, claim, clear_temporaries
from shards.exchange.send import LocalFile, send_all
from shards.exchange.storage import Storage, open_storage
from shards.exchange.transfer import check_workers
from shards.format import Manifest, Shard, parse_manifest, read_manifest
from shards.schema import list_copies
from shards.screen.lines import Say, format_bytes
from shards.screen.names import advise_verify

DEFAULT_WORKERS = 8


def push_shards(
    folder: Path,
    url: str,
    say: Say,
    compress: bool = False,
    workers: int = DEFAULT_WORKERS,
    with_index: bool = False,
) -> Manifest:
    """Send the finished set in `folder` to `url`, and its index if wanted; returns its manifest.

    Raises ValueError or OSError with one line; what was sent whole stays, and is not sent again.
    """
    check_workers(workers)
    read_manifest(folder)  # An error here leaves a folder without a set untouched.
    storage = open_storage(url)
    listed = storage.list_files()
    with lock_source(folder):
        arrays = list_arrays(folder, read_manifest(folder)) if with_index else None
        manifest = push_locked(folder, storage, listed, say, compress, workers)
        if arrays is not None:
            push_index(folder, storage.inside(INDEX), arrays, say, workers)
    return manifest


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
    size = format_bytes(sum(file.num_bytes for file in files))
    say(f"{folder}: {len(manifest.shards):,} shards, {size}, to {storage.name}")
    num_sent = send_all(storage, listed, files, compress, workers)
    complete(storage, text, replaced)
    say(f"{storage.name}: {len(files):,} files are there, {num_sent:,} of them sent now")
    say(f"dataset_id {manifest.dataset_id}")
    return manifest


def list_local(folder: Path, manifest: Manifest) -> list[LocalFile]:
    """The files of a set; ValueError if one is missing or has the wrong size."""
    files = [check_file(folder / TOKENIZER, None, manifest.content["tokenizer"]["sha256"])]
    if manifest.chat is not None:
        sha256 = manifest.chat["template_sha256"]
        files.append(check_file(folder / CHAT_TEMPLATE, None, sha256))
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


def complete(storage: Storage, manifest: bytes, replaced: list[str]) -> None:
    """Write the manifest, which makes the set at the URL complete; then tidy up."""
    storage.write(MANIFEST, [manifest])
    for name in replaced:
        storage.delete(name)
    if replaced:
        shards = parse_manifest(manifest, MANIFEST).shards
        clear_arrays(storage.inside(INDEX), {(s.name, s.sha256[:16]) for s in shards})
    storage.delete(UPLOAD)
