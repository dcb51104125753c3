"""Writes that survive a kill or a power cut: a file is there whole, or not at all."""

import hashlib
import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: renames in it survive a power cut."""
    if os.name == "nt":  # Windows has no handle on a folder to flush.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(temporary: Path, final: Path) -> None:
    """Give a written and fsynced file its final name, durably."""
    os.replace(temporary, final)
    sync_folder(final.parent)


def write_file(path: Path, content: str) -> None:
    """Write a small text file: under a temporary name first, then renamed onto `path`."""
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    commit(temporary, path)


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
