"""A file that is not on this machine: what it must be, and what it is called here once fetched."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from shards.disk.folders import remove
from shards.screen.url import SCHEME, show_url

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+)://")


@dataclass(frozen=True)
class RemoteFile:
    """A file elsewhere, pinned: another version of it is never taken for it."""

    # What the set calls it: its path in a --dataset; else its URL, without keys and query.
    name: str
    num_bytes: int
    sha256: str | None = None
    git_sha1: str | None = None  # of its git blob: what the Hub has for small files
    # What its server calls this version of it, an ETag or a time; "" if it says nothing.
    pin: str = ""
    # Which of the URLs that --input gave has led to it, counted from 0.
    place: int = 0
    # Where it is fetched: may hold keys, so it is neither stored nor printed.
    url: str = field(default="", compare=False, repr=False)


def is_remote(entry: str) -> bool:
    """Whether an --input is a URL, and not one of this machine's files.

    >>> is_remote("s3://bucket/x"), is_remote("C:/x.txt"), is_remote("file:///x.txt")
    (True, False, False)
    """
    return find_scheme(entry) not in ("", "file")


def find_scheme(url: str) -> str:
    """What a URL begins with, in small letters; "" for a path.

    >>> find_scheme("S3://bucket/x"), find_scheme("a/b.txt")
    ('s3', '')
    """
    found = _SCHEME.match(url)
    return found[1].lower() if found else ""


def name_url(url: str) -> str:
    """What a set calls what is at a URL: no user, key, query or fragment.

    A signed URL has another query each time, so no query can be a part of a name.
    """
    return show_url(url) if SCHEME.match(url) else url


def choose_local_name(name: str, pin: str = "") -> str:
    """Return a file name of its own for a version of a remote file, with the same suffix.

    >>> choose_local_name("data/train-00000.parquet")
    '8730be03-train-00000.parquet'
    """
    digest = hashlib.sha256((name + pin).encode("utf-8")).hexdigest()[:8]
    last = re.sub(r"[^A-Za-z0-9._-]", "_", name.rpartition("/")[2])
    return f"{digest}-{last[-150:]}"


def local_path(file: RemoteFile, folder: Path) -> Path:
    """Where a file lies in a folder of downloads."""
    return folder / choose_local_name(file.name, file.pin)


def private_folder(path: Path) -> Path:
    """Where a file is until it is whole and checked."""
    return path.with_name(f".{path.name}.part")


def remove_files(files: tuple[RemoteFile, ...], folder: Path) -> None:
    """Remove files, whole or begun, from a folder of downloads."""
    for file in files:
        path = local_path(file, folder)
        path.unlink(missing_ok=True)
        remove(private_folder(path), ignore_errors=True)


def find_fault(path: Path, file: RemoteFile, owner: str = "its server") -> str | None:
    """Say how a file differs from what `owner` has; None if it does not."""
    num_bytes = path.stat().st_size
    if num_bytes != file.num_bytes:
        return f"came with {num_bytes:,} bytes, {owner} has {file.num_bytes:,}"
    with path.open("rb") as opened:
        if file.sha256:
            wanted, digest = file.sha256, hashlib.sha256()
        elif file.git_sha1:
            # A git blob's id is the sha1 of this header and the content.
            wanted, digest = file.git_sha1, hashlib.sha1(f"blob {num_bytes}\0".encode())
        else:
            return None
        hashlib.file_digest(opened, lambda: digest)
    if digest.hexdigest() != wanted:
        return f"came with {digest.name} {digest.hexdigest()}, {owner} has {wanted}"
    return None
