"""Fetches a file from wherever it is: whole, as it was pinned, or not at all."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from prep.remote import https, hub_files
from prep.remote.pinned import RemoteFile, find_fault, find_scheme, local_path, private_folder
from prep.remote.retry import PATIENT, Retry, warn
from shards.disk.folders import remove
from shards.screen.lines import Say

# Fetches a file into an empty folder of its own, and returns its path there.
Fetch = Callable[[RemoteFile, Path, Say, Retry], Path]


def choose_fetch(url: str) -> Fetch:
    """What fetches from a URL of this kind."""
    match find_scheme(url):
        case "hf":
            return hub_files.fetch
        case "http" | "https":
            return https.fetch
        case _:
            from prep.remote import buckets  # pyarrow.fs loads the libraries of all clouds

            return buckets.fetch


def download(file: RemoteFile, folder: Path, report: Say = warn, retry: Retry = PATIENT) -> Path:
    """Fetch a file into `folder`, unless it is there; returns its path.

    The file appears under its final name only when it is what was pinned. One process
    at a time may fetch a file into a folder; what a killed one left is removed. `report` gets one
    line for each request that is made again. Raises SourceError for a file that is gone, was
    changed, may not be read, or does not arrive whole, and OSError if the disk is full.
    """
    path = local_path(file, folder)
    if path.is_file() and find_fault(path, file) is None:
        return path
    private = private_folder(path)
    remove(private, ignore_errors=True)
    try:
        fetched = choose_fetch(file.url)(file, private, report, retry)
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
