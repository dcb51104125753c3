"""Source files on this machine: what --input names."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prep.request import SUFFIXES
from prep.sources.stamp import Stamp, take_stamp
from shards.disk.layout import WORK


@dataclass(frozen=True)
class Source:
    """One file that documents come from."""

    name: str
    num_bytes: int
    # As the Hub states them; None for a local file.
    sha256: str | None = None
    git_sha1: str | None = None
    # Where it is; "" for a file on the Hub. Not part of the plan's identity: data may move.
    path: str = ""
    # What it looks like there; None for a file on the Hub. Not part of the identity either.
    stamp: Stamp | None = field(default=None, compare=False)


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """The files that --input names, in the given order; those of a folder or glob are sorted.

    A source's name is its path below the folder that all of them share, so the same data gives
    the same dataset_id wherever it is.
    """
    paths = list(dict.fromkeys(path for entry in inputs for path in find_files(entry)))
    if len(paths) == 1:
        root = paths[0].parent
    else:
        root = Path(os.path.commonpath([path.parent for path in paths]))
    stamps = [(path, take_stamp(path)) for path in paths]
    return [
        Source(path.relative_to(root).as_posix(), stamp.num_bytes, path=str(path), stamp=stamp)
        for path, stamp in stamps
    ]


def find_files(entry: str) -> list[Path]:
    """The files of one --input: a file, a folder (with everything below it), or a glob."""
    path = Path(entry)
    if path.is_file():
        found = [path]
        if not entry.endswith(SUFFIXES):
            raise ValueError(f"{entry}: expected a file ending in {', '.join(SUFFIXES)}")
    elif path.is_dir():
        # A set of shards below it, known by prep's own folder, is not a source.
        sets = [folder.parent for folder in path.rglob(WORK)]
        found = [
            file
            for file in path.rglob("*")
            if file.is_file() and not any(folder in file.parents for folder in sets)
        ]
    else:
        found = [Path(match) for match in glob.glob(entry, recursive=True)]
        if not found:
            raise ValueError(
                f"{entry}: no such file or folder, and as a pattern it matches nothing"
            )
    files = [Path(os.path.abspath(file)) for file in found if str(file).endswith(SUFFIXES)]
    if not files:
        raise ValueError(f"{entry}: no file ending in {', '.join(SUFFIXES)} there")
    return sorted(files)
