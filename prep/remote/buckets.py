"""Files in buckets: s3:// and gs://, listed, pinned by size and time, and fetched.

    s3://bucket/folder, gs://bucket/folder/*.parquet

Keys, regions and endpoints are given as for sets in buckets (docs/storage.md).
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pyarrow import fs

from prep.remote.https import CHANGED, tell
from prep.remote.pinned import RemoteFile, name_url
from prep.remote.retry import (
    FailedDownloadError,
    Fault,
    Retry,
    SourceError,
    keep_trying,
    shorten,
)
from prep.remote.tree import Entry, find_entries
from shards.exchange.storage import CHUNK_BYTES, Storage, StorageError, open_storage
from shards.screen.lines import Say
from shards.screen.url import check_url, restore_url

# pyarrow makes each request several times itself.
MAX_TRIES = 2


@dataclass(frozen=True)
class Bucket:
    """A bucket as a tree of folders."""

    storage: Storage

    def look(self, path: str) -> Entry | None:
        """The object or folder at a path."""
        with self.storage.telling(path):
            info = self.storage.files.get_file_info(f"{self.storage.root}/{path}")
        return None if info.type == fs.FileType.NotFound else self._describe(info)

    def list_folder(self, folder: str) -> Iterable[Entry]:
        """The objects and folders directly in a folder."""
        root = f"{self.storage.root}/{folder}".rstrip("/")
        with self.storage.telling(folder):
            try:
                found = self.storage.files.get_file_info(fs.FileSelector(root))
            except FileNotFoundError:
                return []
        return [self._describe(info) for info in found]

    def _describe(self, info: fs.FileInfo) -> Entry:
        path = info.path.removeprefix(f"{self.storage.root}/")
        if info.type == fs.FileType.Directory:
            return Entry(path, is_folder=True)
        return Entry(path, num_bytes=int(info.size), pin=tell_time(info.mtime_ns))


def check_place(url: str) -> None:
    """ValueError for a URL that names no bucket, or whose query says what is not known."""
    check_url(url)
    with suppress(StorageError):  # The network's faults are told when files are asked for.
        open_bucket(url)


def find_files(url: str, place: int, report: Say, retry: Retry, say: Say) -> list[RemoteFile]:
    """The files that a URL means: an object, all below a folder, or those that a pattern matches.

    Raises SourceError or StorageError with one line for what is not there or may not be read.
    """
    name = name_url(url)
    bucket, _, path = name.partition("://")[2].partition("/")
    scheme = name.partition("://")[0]

    def look() -> list[RemoteFile]:
        return [
            RemoteFile(
                f"{scheme}://{bucket}/{entry.path}",
                entry.num_bytes,
                pin=entry.pin,
                place=place,
                url=url,
            )
            for entry in find_entries(Bucket(open_bucket(url)), path, name, say)
        ]

    return keep_trying(look, name, make_fewer(retry), report, diagnose)


def fetch(file: RemoteFile, private: Path, report: Say, retry: Retry) -> Path:
    """Fetch an object into an empty folder of its own."""
    private.mkdir()
    target = private / "file"
    fewer = make_fewer(retry)
    keep_trying(lambda: fetch_whole(file, target), file.name, fewer, report, diagnose)
    return target


def make_fewer(retry: Retry) -> Retry:
    """The same with MAX_TRIES at most."""
    return replace(retry, tries=min(retry.tries, MAX_TRIES))


def fetch_whole(file: RemoteFile, target: Path) -> None:
    """Fetch an object in pieces, which must all be of the version that was listed.

    Nothing in pyarrow makes a request for one version alone, so what the storage says of the
    object is compared before the first piece and after the last one.
    """
    bucket = Bucket(open_bucket(file.url))
    path = file.name.partition("://")[2].partition("/")[2]
    tag = check_version(bucket, file, path)
    with bucket.storage.open(path) as source, open(target, "wb") as out:
        while chunk := source.read(CHUNK_BYTES):
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
        arrived = out.tell()
    if check_version(bucket, file, path) != tag:
        raise FailedDownloadError("was replaced while it was fetched")
    if arrived != file.num_bytes:
        raise FailedDownloadError(f"broke off after {arrived:,} of {file.num_bytes:,} bytes")


def check_version(bucket: Bucket, file: RemoteFile, path: str) -> str:
    """The object's ETag now; SourceError if it is not what was listed."""
    entry = bucket.look(path)
    if entry is None or entry.is_folder:
        raise SourceError(f"{file.name}: is gone; put it back, or start over with another --out")
    if (entry.num_bytes, entry.pin) != (file.num_bytes, file.pin):
        was, now = tell(file.num_bytes, file.pin), tell(entry.num_bytes, entry.pin)
        raise SourceError(f"{file.name}: {CHANGED.format(was=was, now=now)}")
    with bucket.storage.open(path) as opened:
        found = opened.metadata() or {}
    return str(found.get("ETag", b""))


def open_bucket(url: str) -> Storage:
    """The bucket of a URL, without the path in it.

    With `anonymous@`, a user without a key, requests are not signed: so public ones are read.
    """
    scheme, _, rest = restore_url(url).partition("://")
    place, mark, query = rest.partition("?")
    info, at, after = place.rpartition("@")
    bucket = after.partition("/")[0]
    return open_storage(f"{scheme}://{info}{at}{bucket}{mark}{query}")


def tell_time(mtime_ns: int | None) -> str:
    """When an object was written, in UTC.

    >>> tell_time(1_700_000_000_000_000_000)
    '2023-11-14T22:13:20Z'
    """
    if mtime_ns is None:
        return ""
    seconds, fraction = divmod(mtime_ns, 10**9)
    shown = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
    return f"{shown}.{fraction:09d}Z" if fraction else f"{shown}Z"


def diagnose(error: BaseException) -> Fault | None:
    """The fault, if an error may pass with time; else None."""
    match error:
        case StorageError():  # Its text begins with the place, and ends with what to do.
            reason = str(error).partition(": ")[2] or str(error)
            return Fault(reason.removesuffix("; run the same command again to resume"))
        case FailedDownloadError():
            return Fault(shorten(error))
    return None
