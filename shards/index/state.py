"""In which state a set's index is: what `velocity shards info` and `verify` say of it."""

from collections.abc import Iterator
from pathlib import Path

from shards.disk.durable import hash_file
from shards.disk.layout import index_path
from shards.format import Manifest
from shards.index.array import count_bytes
from shards.index.contents import Entry, OtherVersionError, advise_index, read_index
from shards.screen.lines import format_bytes, format_plural


def describe_index(folder: Path, manifest: Manifest) -> str:
    """Whether a set has an index, and of which version of it."""
    if not index_path(folder).exists():
        return "none"
    try:
        arrays = read_index(folder, manifest)
    except ValueError as error:
        return f"none of this version: {error}"
    missing = [entry for entry in arrays if not is_there(folder, entry)]
    if missing:
        return (
            f"of this version, but {missing[0].path(folder).name} is missing or cut short, one of "
            f"{len(missing):,}; {advise_index(folder)}"
        )
    size = sum(count_bytes(entry.num_tokens) for entry in arrays)
    return f"of this version, {format_plural(len(arrays), 'array')}, {format_bytes(size)}"


def is_there(folder: Path, entry: Entry) -> bool:
    """Whether an array's file is there, with the size that it must have."""
    path = entry.path(folder)
    return path.is_file() and path.stat().st_size == count_bytes(entry.num_tokens)


def verify_index(folder: Path, manifest: Manifest) -> Iterator[tuple[str, str | None]]:
    """Re-read an index; yields each file's name with None, or with what is wrong with it.

    Nothing if there is none, or it is another version's: then it is not used.
    """
    path = index_path(folder)
    name = path.relative_to(folder).as_posix()
    if not path.exists():
        return
    try:
        arrays = read_index(folder, manifest)
    except OtherVersionError:
        return
    except (OSError, ValueError) as error:
        yield name, str(error).removeprefix(f"{path}: ")
        return
    yield name, None
    for entry, digests in arrays.items():
        path, fault = entry.path(folder), None
        if not is_there(folder, entry):
            fault = "is missing, or has the wrong size"
        elif hash_file(path) != digests.file:
            fault = "its sha256 is not index.json's"
        yield path.relative_to(folder).as_posix(), fault
