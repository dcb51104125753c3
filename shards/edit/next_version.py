"""What is left to do for a version whose files are whole: .prep/version/next.json.

It is read by whichever command comes next, so it is checked whole before a file is touched: its
manifest is that of a later version of this set, all files of that are there, and what is deleted
are files of an earlier one.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.disk.durable import hash_file, write_file
from shards.disk.json_files import Json, load_json
from shards.disk.layout import VERSIONS, append_folder, next_path, version_folder
from shards.disk.shapes import find_misshape
from shards.edit.lineage import is_later
from shards.format import Manifest, load_manifest, parse_manifest, read_manifest
from shards.schema import list_copies


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


@dataclass(frozen=True)
class Expected:
    """What a file of a version must be; None: the manifest does not say."""

    num_bytes: int | None
    sha256: str | None

    def matches(self, path: Path, hashes: bool = True) -> bool:
        """Whether a file is this one; by its size alone without `hashes`."""
        if not path.is_file() or self.num_bytes not in (None, path.stat().st_size):
            return False
        return not hashes or self.sha256 in (None, hash_file(path))


# The sha256 of the manifest is missing in files of earlier releases.
SHAPE: dict[str, Any] = {
    "manifest": str,
    "sha256?": str,
    "moves": [[str]],
    "deletes": [str],
    "clears?": [str],
}


def write_next(folder: Path, following: NextVersion) -> None:
    """Write next.json: from then on there is no going back."""
    content = {"sha256": hash_text(following.manifest), **asdict(following)}
    write_file(next_path(folder), json.dumps(content) + "\n")


def hash_text(text: str) -> str:
    """The sha256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_next(folder: Path) -> NextVersion | None:
    """What a stopped command left to do, checked; None if there is nothing.

    Raises ValueError with one line, before anything is changed, if it was edited or damaged.
    """
    path = next_path(folder)
    if not path.exists():
        return None
    raw = load_json(path)
    fault = find_misshape(raw, SHAPE) or find_stray(folder, raw)
    if fault is None:
        following = parse_next(raw)
        fault = find_fault(folder, following)
    if fault is not None:
        raise ValueError(
            f"{path}: {fault}; it was edited or damaged, and nothing was changed; remove "
            f"{path.parent} to keep the set as it is, and run the command again"
        )
    check_files(folder, following, hashes=True)
    return following


def parse_next(raw: Json) -> NextVersion:
    """What `write_next` wrote, from JSON of its shape."""
    moves = tuple((source, name) for source, name in raw["moves"])
    return NextVersion(raw["manifest"], moves, tuple(raw["deletes"]), tuple(raw.get("clears", [])))


def find_stray(folder: Path, raw: Json) -> str | None:
    """Whether the text is another one, or a name leads to where no version is made."""
    if raw.get("sha256") not in (None, hash_text(raw["manifest"])):
        return "its manifest does not have the sha256 beside it"
    works = {place(folder).relative_to(folder) for place in (version_folder, append_folder)}
    pairs = all(len(move) == 2 for move in raw["moves"])
    names = [move[-1] for move in raw["moves"] if move] + raw["deletes"]
    plain = all(name == Path(name).name and "\\" not in name for name in names)
    inside = all(Path(source).parent in works for source, *_ in raw["moves"])
    if pairs and plain and inside and {Path(name) for name in raw.get("clears", [])} <= works:
        return None
    return "names a file outside the set's folder"


def find_fault(folder: Path, following: NextVersion) -> str | None:
    """Why this is not what makes a later version of the set in `folder`; None if it is."""
    try:
        new = parse_manifest(following.manifest, "its manifest")
    except ValueError as error:
        return str(error)
    current = read_manifest(folder)
    is_done = current.dataset_id == new.dataset_id
    if not is_done and not is_later(new, current):
        return (
            "its manifest is not that of a later version of the set (dataset_id "
            f"{new.dataset_id[:16]})"
        )
    files, here = list_files(new), {} if is_done else list_files(current)
    foreign = [name for _, name in following.moves if name not in files or name in here]
    if foreign:
        return f"{foreign[0]} is not a new file of that version"
    kept = set(following.deletes) & set(files)
    lost = set(following.deletes) - set(here)
    for version in read_versions(folder, new) if lost else ():
        lost -= set(list_files(version))
    if lost | kept:
        return f"{min(lost | kept)} is to be deleted, but is not of an earlier version only"
    return None


def check_files(folder: Path, following: NextVersion, hashes: bool) -> None:
    """ValueError if a file of the new version is missing, or another one has its name.

    With `hashes` the new files are read; otherwise only their sizes are compared.
    """
    new = parse_manifest(following.manifest, "manifest")
    expected, here = list_files(new), list_files(read_manifest(folder))
    sources = {name: folder / source for source, name in following.moves}
    for name in expected.keys() - here.keys() | sources.keys():
        check_file(folder, folder / name, sources.get(name), expected[name], hashes)


def check_file(
    folder: Path, path: Path, source: Path | None, expected: Expected, hashes: bool
) -> None:
    """ValueError if a file is neither at `source`, whole, nor in its place."""
    has_source = source is not None and source.exists()
    if source is not None and has_source and not expected.matches(source, hashes):
        state = f"{source}: is damaged"
    elif path.exists() and not ((expected.sha256 or not has_source) and expected.matches(path)):
        # A file with the very bytes was put there by a command that was stopped.
        raise ValueError(
            f"{path}: is in the way of a new version and not part of the set; "
            "move it away and run the same command again"
        )
    elif has_source or path.exists():
        return
    else:
        state = f"{source or path}: is missing"
    work = version_folder(folder)
    if source is not None and not next_path(folder).exists():
        work = source.parent
    raise ValueError(
        f"{state}, so the new version cannot be made; remove {work} and run the same command again"
    )


def list_files(manifest: Manifest) -> dict[str, Expected]:
    """The files of a version's shards, and its lists of copies, by name."""
    files = {name: Expected(None, sha256) for name, sha256 in list_copies(manifest.audit).items()}
    for shard in manifest.shards:
        files[shard.name] = Expected(shard.num_bytes, shard.sha256)
        files[shard.sidecar] = Expected(None, manifest.sidecar_sha256(shard))
    return files


def read_versions(folder: Path, new: Manifest) -> Iterator[Manifest]:
    """The versions in versions/ that `new` is later than."""
    for path in sorted((folder / VERSIONS).glob("*.json")):
        version = load_manifest(path)
        if is_later(new, version):
            yield version
