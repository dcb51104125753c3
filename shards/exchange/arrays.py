"""A set's index at a URL: .index/ beside the set's files, for push and pull with --index.

The set comes first, whole. Then the arrays, each compared with index.json before it is sent and
after it is fetched, and index.json last. What is there whole is not moved again.

An array belongs to the bytes of a shard. So whoever pulls a part of the set gets the arrays of its
shards, and an index.json of its own.
"""

from collections.abc import Collection
from pathlib import Path

from shards.disk.folders import make_folder
from shards.disk.layout import INDEX, index_folder, index_path, parse_array_name
from shards.exchange.fetch import RemoteFile, fetch_files
from shards.exchange.send import LocalFile, send_all
from shards.exchange.storage import Storage, read_temporary
from shards.format import Manifest
from shards.index.array import count_bytes
from shards.index.contents import (
    Arrays,
    advise_index,
    clear_others,
    parse_index,
    read_index,
    write_index,
)
from shards.screen.lines import Say, format_bytes, format_plural

INDEX_FILE = index_path(Path()).name


def list_arrays(folder: Path, manifest: Manifest) -> list[LocalFile]:
    """The arrays of a set's index, to be sent; ValueError if it has none of this version, whole."""
    advice = advise_index(folder)
    files = []
    for entry, digests in read_index(folder, manifest).items():
        path, num_bytes = entry.path(folder), count_bytes(entry.num_tokens)
        if not path.is_file() or path.stat().st_size != num_bytes:
            raise ValueError(f"{path}: is missing, or has the wrong size; {advice}")
        files.append(LocalFile(path, num_bytes, digests.file, INDEX_FILE, advice))
    return files


def push_index(
    folder: Path, storage: Storage, files: list[LocalFile], say: Say, workers: int
) -> None:
    """Send a set's index to its folder at a URL, and delete other arrays there."""
    text = index_path(folder).read_bytes()
    listed = storage.list_files()
    if INDEX_FILE in listed and storage.read_bytes(INDEX_FILE) != text:
        storage.delete(INDEX_FILE)
    size = format_bytes(sum(file.num_bytes for file in files))
    say(f"{folder}: {format_plural(len(files), 'array')}, {size}, to {storage.name}")
    num_sent = send_all(storage, listed, files, False, workers)
    storage.write(INDEX_FILE, [text])
    names = {file.path.name for file in files}
    for name in listed:
        meant = read_temporary(name) or name
        if name not in names and (parse_array_name(meant) or read_temporary(name) == INDEX_FILE):
            storage.delete(name)
    say(f"{storage.name}: {len(files):,} arrays are there, {num_sent:,} of them sent now")


def clear_arrays(storage: Storage, kept: Collection[tuple[str, str]]) -> None:
    """Delete the arrays of shards that are not `kept`; much of their text could be told from them.

    `storage` is the index's folder; a shard is its name and the first 16 digits of its sha256.
    """
    for name in storage.list_files():
        shard = parse_array_name(name)
        if shard is not None and shard not in kept:
            storage.delete(name)


def read_remote_index(storage: Storage, manifest: Manifest) -> Arrays:
    """The arrays of the index at the URL of a set, which `manifest` describes.

    Raises ValueError, before anything is fetched, if there is none of this version, or not all.
    """
    inner = storage.inside(INDEX)
    listed = inner.list_files()
    advice = "push it with --index, or pull without it and make it: velocity shards index"
    if INDEX_FILE not in listed:
        raise ValueError(f"{storage.name}: has no index; {advice}")
    text = inner.read_bytes(INDEX_FILE)
    arrays = parse_index(text, f"{inner.name}/{INDEX_FILE}", manifest, advice)
    for entry in arrays:
        name, expected = entry.path(Path()).name, count_bytes(entry.num_tokens)
        if listed.get(name) != expected:
            raise ValueError(f"{inner.name}/{name}: is missing there, or cut short; {advice}")
    return arrays


def list_remote(arrays: Arrays) -> list[RemoteFile]:
    """The files of these arrays."""
    return [
        RemoteFile(
            (name := entry.path(Path()).name),
            count_bytes(entry.num_tokens),
            digests.file,
            name,
            INDEX_FILE,
        )
        for entry, digests in arrays.items()
    ]


def pull_index(
    storage: Storage,
    folder: Path,
    temporary: Path,
    say: Say,
    manifest: Manifest,
    arrays: Arrays,
    workers: int,
) -> None:
    """Fetch the arrays, then write index.json for the set in `folder`."""
    files, inner = list_remote(arrays), storage.inside(INDEX)
    size = format_bytes(sum(file.num_bytes for file in files))
    say(f"{inner.name}: {format_plural(len(files), 'array')}, {size}, to {index_folder(folder)}")
    make_folder(index_folder(folder))
    fetched = fetch_files(inner, index_folder(folder), temporary, files, workers)
    write_index(folder, manifest, arrays)
    clear_others(folder, arrays)
    say(f"{index_folder(folder)}: {len(files):,} arrays are whole, {fetched:,} of them fetched now")
