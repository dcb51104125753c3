"""One file of the Hub: fetched whole, and compared with the Hub's hash."""

import errno
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from prep.sources.hub_requests import (
    PATIENT,
    FailedDownloadError,
    Retry,
    ask,
    explaining,
    warn,
)
from shards.disk.folders import remove
from shards.screen.lines import Say


@dataclass(frozen=True)
class HubFile:
    """A file of a dataset and what its bytes must be."""

    name: str
    num_bytes: int
    sha256: str | None  # None for a small file that the Hub keeps in git itself
    git_sha1: str | None = None  # then this is its git blob id


@dataclass(frozen=True)
class HubDataset:
    """A split of a dataset, as asked for and as it was found at one commit."""

    repo: str
    config: str | None
    split: str
    requested_revision: str | None
    revision: str  # the commit, 40 hex digits
    files: tuple[HubFile, ...]
    num_rows: int | None  # as the dataset's card says, if it does
    num_text_bytes: int | None  # of all columns, before compression; likewise


def download(
    dataset: HubDataset,
    file: HubFile,
    folder: Path,
    report: Say = warn,
    retry: Retry = PATIENT,
) -> Path:
    """Fetch a file of a dataset into `folder`, unless it is there; returns its path.

    The file appears under its final name only when its size and hash are the Hub's. One process
    at a time may fetch a file into a folder; what a killed one left is removed. `report` gets one
    line for each request that is made again. Raises HubError for a file that is gone, may not be
    read, or does not arrive whole, and OSError if the disk is full.
    """
    path = folder / choose_local_name(file.name)
    if path.is_file() and find_fault(path, file) is None:
        return path
    private = _private_folder(path)
    try:
        with explaining(dataset.repo, dataset.revision, file.name):
            fetched = ask(
                lambda: _fetch_whole(dataset, file, private),
                f"{dataset.repo}: {file.name}",
                retry,
                report,
            )
        os.replace(fetched, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(
                errno.ENOSPC, f"the disk is full; {file.name} did not fit", str(folder)
            ) from None
        raise
    finally:
        remove(private, ignore_errors=True)
    return path


def remove_files(dataset: HubDataset, folder: Path) -> None:
    """Remove the files of a (part of a) dataset, whole or begun, from the folder of downloads."""
    for file in dataset.files:
        path = folder / choose_local_name(file.name)
        path.unlink(missing_ok=True)
        remove(_private_folder(path), ignore_errors=True)


def choose_local_name(name: str) -> str:
    """Return a file name of its own for a path of the Hub, with the same suffix.

    >>> choose_local_name("data/train-00000.parquet")
    '8730be03-train-00000.parquet'
    """
    digest = hashlib.sha256(name.encode("utf-8")).hexdigest()[:8]
    last = re.sub(r"[^A-Za-z0-9._-]", "_", name.rpartition("/")[2])
    return f"{digest}-{last[-150:]}"


def find_fault(path: Path, file: HubFile) -> str | None:
    """Say how a file differs from what the Hub has; None if it does not."""
    num_bytes = path.stat().st_size
    if num_bytes != file.num_bytes:
        return f"came with {num_bytes:,} bytes, the Hub has {file.num_bytes:,}"
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
        return f"came with {digest.name} {digest.hexdigest()}, the Hub has {wanted}"
    return None


def _private_folder(path: Path) -> Path:
    """Where a file is until it is whole and checked."""
    return path.with_name(f".{path.name}.part")


def _fetch_whole(dataset: HubDataset, file: HubFile, private: Path) -> Path:
    """Fetch a file into an empty folder of its own, and compare it with what the Hub has."""
    from huggingface_hub import hf_hub_download

    remove(private, ignore_errors=True)
    try:
        fetched = hf_hub_download(
            dataset.repo,
            file.name,
            repo_type="dataset",
            revision=dataset.revision,
            local_dir=private,
            cache_dir=private / "cache",  # not the user's, which may hold older bytes
        )
    except RuntimeError as error:  # what hf_xet raises, whatever happened
        raise FailedDownloadError(" ".join(str(error).split())) from error
    fault = find_fault(Path(fetched), file)
    if fault:
        raise FailedDownloadError(fault)
    return Path(fetched)
