"""Fetches files of a set from a URL: size and sha256 compared, fsynced, renamed."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from shards.disk.durable import commit, hash_file, open_new, sync_file
from shards.exchange.packing import DamagedError, read_chunks, unpack
from shards.exchange.storage import Storage, StorageError
from shards.exchange.transfer import Meter, keep_trying, transfer_all


@dataclass(frozen=True)
class RemoteFile:
    """A file of the set: what it must be, and which object at the URL holds it."""

    name: str
    num_bytes: int
    # None if the manifest does not say: sets made by other tools may not record sidecar hashes.
    sha256: str | None
    # The object's name: the file's own, or that with .zst appended.
    stored: str
    # What says its sha256.
    source: str = "the manifest"

    @property
    def is_packed(self) -> bool:
        """Whether the object is compressed."""
        return self.stored != self.name


def has_size(folder: Path, file: RemoteFile) -> bool:
    """Whether a file is in `folder` already with the right size."""
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.num_bytes


def is_whole(folder: Path, file: RemoteFile) -> bool:
    """Whether a file is in `folder` already, whole as far as the manifest can tell."""
    return has_size(folder, file) and file.sha256 in (None, hash_file(folder / file.name))


def fetch_files(
    storage: Storage, folder: Path, temporary: Path, wanted: list[RemoteFile], workers: int
) -> int:
    """Fetch all files that are not there whole; returns how many it fetched.

    Raises ValueError with the first damaged one, once all the others are there.
    """
    meter = Meter(len(wanted), sum(file.num_bytes for file in wanted))
    fetched = []

    def work(file: RemoteFile, meter: Meter) -> str | None:
        if is_whole(folder, file):
            meter.add(file.num_bytes, moved=False)
            return None
        fault = fetch_file(storage, file, temporary / file.name, meter)
        if fault is None:
            commit(temporary / file.name, folder / file.name)
            fetched.append(file.name)
        return fault

    faults = transfer_all(wanted, work, meter, workers)
    if faults:
        raise ValueError(
            f"{faults[0]} (one of {len(faults):,} damaged files; all others are in {folder}); "
            "remove it at the URL, and push the set again from a whole copy"
        )
    return len(fetched)


def fetch_file(storage: Storage, file: RemoteFile, target: Path, meter: Meter) -> str | None:
    """Fetch a file to `target`, durably; returns what is wrong with it, if anything.

    A file that arrives wrong is fetched once more: the fault may be in transit, not in the object.
    """
    fault = None
    for _ in range(2):
        fault = keep_trying(lambda: copy_file(storage, file, target, meter), meter)
        if fault is None:
            return None
    target.unlink(missing_ok=True)
    return f"{storage.name}/{file.stored}: {fault}"


def copy_file(storage: Storage, file: RemoteFile, target: Path, meter: Meter) -> str | None:
    """Copy and unpack an object once; returns what is wrong with it, if anything."""
    sha256, size = hashlib.sha256(), 0
    fault: str | None = "is incomplete"
    try:
        with storage.open(file.stored) as source, open_new(target) as out:
            for chunk in unpack(source) if file.is_packed else read_chunks(source):
                meter.add(len(chunk))
                size += len(chunk)
                sha256.update(chunk)
                out.write(chunk)
                if size > file.num_bytes:
                    break
            sync_file(out)
        fault = find_fault(file, size, sha256.hexdigest())
    except DamagedError as error:
        fault = str(error)
    except StorageError:
        raise
    except OSError as error:
        raise ValueError(
            f"{target}: could not be written ({error.strerror or error}); free some disk and run "
            "the same command again, whole files stay"
        ) from error
    finally:
        if fault is not None:
            meter.take_back(size)
    return fault


def find_fault(file: RemoteFile, size: int, sha256: str) -> str | None:
    """What is wrong with a file of this size and sha256, if anything."""
    if size != file.num_bytes:
        more = "more than " if size > file.num_bytes else ""
        return f"has {more}{min(size, file.num_bytes):,} bytes; expected {file.num_bytes:,}"
    if file.sha256 not in (None, sha256):
        return f"its sha256 is not {file.source}'s"
    return None
