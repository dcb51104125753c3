"""Source files on this machine: what --input names."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from prep.files.door import check_name, check_readable
from prep.files.stamp import Stamp, take_stamp
from prep.policy import WHOLE_ROW
from prep.readers.objects import begins_with_document
from prep.readers.tables import DELIMITERS, has_column
from prep.sources.walk import WITHOUT, Walk, describe_left_out, describe_none, is_pattern
from shards.screen.lines import Say


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


def find_sources(
    inputs: Sequence[str],
    text_column: str = "content",
    say: Say = lambda line: None,
    split: str = "train",
) -> list[Source]:
    """The files that --input names, in the given order; those of a folder or pattern are sorted.

    A source's name is its path below the folder that all of them share, so the same data gives
    the same dataset_id wherever it is. `say` gets one line about what folders and patterns hold
    besides. `split` is the one to take of a folder that `datasets` saved with several. Raises
    ValueError for what cannot be read: a pipe, a broken link, a shut folder.
    """
    paths, left_out = find_files(inputs, text_column, split)
    if left_out:
        say(left_out)
    if len(paths) == 1:
        root = paths[0].parent
    else:
        root = Path(os.path.commonpath([path.parent for path in paths]))
    return [make_source(path, path.relative_to(root).as_posix()) for path in paths]


def find_files(
    inputs: Sequence[str], text_column: str = "content", split: str = "train"
) -> tuple[list[Path], str]:
    """The files that --input names, each real one once; and what was left out, in a line or ""."""
    walk = Walk(lambda path: doubt_file(path, text_column), split)
    paths: list[Path] = []
    for entry in inputs:
        before = walk.num_taken
        add_entry(walk, entry)
        if walk.num_taken == before:
            raise ValueError(f"{entry}: {describe_none(walk.list_reasons())}")
        # Of thousands of entries each looks only at what it added; by parts, as paths compare.
        added = islice(reversed(walk.found.values()), len(walk.found) - len(paths))
        paths += sorted(added, key=lambda path: path.parts)
    return paths, describe_left_out(walk.list_reasons())


def add_entry(walk: Walk, entry: str) -> None:
    """Take what one --input names: a file, a folder (with everything below it), or a pattern."""
    path = Path(entry)
    if entry == "-":
        raise ValueError("--input -: standard input is not read; write it to a file first")
    if path.is_dir():
        walk.add_folder(path)
    elif os.path.lexists(path):
        walk.add_file(path)
    elif not is_pattern(path) or not walk.add_pattern(path):
        raise ValueError(f"{entry}: no such file or folder, and as a pattern it matches nothing")


def make_source(path: Path, name: str) -> Source:
    """A local file as a source; ValueError if its name cannot be written into a set."""
    # Arrow opens parquet files by names in UTF-8.
    check_name(str(path) if path.suffix.lower() == ".parquet" else name)
    stamp = take_stamp(path)
    return Source(name, stamp.num_bytes, path=str(path), stamp=stamp)


def doubt_chats(path: Path) -> str | None:
    """Why a file is left out of a folder of chats: it is text, or begins otherwise."""
    suffix = path.suffix.lower()
    has_none = suffix == ".txt"
    if suffix == ".json" or suffix in DELIMITERS:
        check_readable(path)
        has_none = not (
            begins_with_document(path, WHOLE_ROW)
            if suffix == ".json"
            else has_column(path, DELIMITERS[suffix], WHOLE_ROW)
        )
    return f"{suffix}{WITHOUT}chats" if has_none else None


def doubt_file(path: Path, text_column: str) -> str | None:
    """Why a .json, .csv or .tsv is left out of a folder: it does not begin as documents do.

    Such files lie beside many data sets, and describe them.
    """
    suffix = path.suffix.lower()
    if text_column == WHOLE_ROW:
        return doubt_chats(path)
    if suffix == ".json" or suffix in DELIMITERS:
        check_readable(path)
    if suffix == ".json" and not begins_with_document(path, text_column):
        return f".json{WITHOUT}key {text_column!r}"
    if suffix in DELIMITERS and not has_column(path, DELIMITERS[suffix], text_column):
        return f"{suffix}{WITHOUT}column {text_column!r}"
    return None
