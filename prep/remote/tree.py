"""The files that a folder or a pattern elsewhere means, chosen as those on this machine are.

A folder, and a pattern that matches one, mean everything below it. Only folders that may hold a
match are listed.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Protocol

from prep.remote.retry import SourceError
from prep.request import KINDS
from prep.sources.walk import (
    HIDDEN,
    HIDDEN_FOLDERS,
    OWN,
    SETS,
    Parts,
    describe_left_out,
    describe_none,
    has_suffix,
    is_hidden,
    is_own,
    name_suffix,
    simplify,
)
from shards.disk.layout import MANIFEST, TOKENIZER
from shards.screen.lines import Say

# More is likely a mistake, and would take hours to list.
MAX_LISTED = 1_000_000
_MAGIC = re.compile(r"[*?[]")
# Such files lie beside many data sets, and describe them; here they cannot be looked into first.
DOUBTFUL = (".json", ".csv", ".tsv")


@dataclass(frozen=True)
class Entry:
    """A file or folder elsewhere, by its whole path there."""

    path: str
    is_folder: bool = False
    num_bytes: int = 0
    sha256: str | None = None
    git_sha1: str | None = None
    pin: str = ""

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]


class Tree(Protocol):
    """A place with folders."""

    def look(self, path: str) -> Entry | None:
        """What is at a path; None if nothing is."""
        ...

    def list_folder(self, folder: str) -> Iterable[Entry]:
        """What is directly in a folder; "" is the outermost."""
        ...


def find_entries(tree: Tree, path: str, shown: str, say: Say) -> list[Entry]:
    """The files that a path or pattern means, sorted; `say` gets a line about what is left out.

    SourceError, beginning with `shown`, if there are none.
    """
    left_out: list[str] = []
    parts = PurePosixPath(path).parts
    if _MAGIC.search(path):
        fixed = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
        found = walk(tree, "/".join(parts[:fixed]), parts[fixed:], left_out, shown)
    else:
        found = take(tree, "/".join(parts), left_out, shown)
    if not found:
        raise SourceError(f"{shown}: {describe_none(left_out)}")
    if left_out:
        say(f"{shown}: {describe_left_out(left_out)}")
    return sorted(found, key=lambda entry: entry.path.split("/"))


def take(tree: Tree, path: str, left_out: list[str], shown: str) -> list[Entry]:
    """The file at a path, or everything below the folder there."""
    entry = tree.look(path) if path else Entry("", is_folder=True)
    if entry is None:
        raise SourceError(f"{shown}: there is no such file or folder; check the URL")
    if entry.is_folder:
        return walk(tree, path, (), left_out, shown)
    if not has_suffix(PurePosixPath(path)):
        raise SourceError(f"{shown}: expected a file ending in {KINDS}")
    return [entry]


def walk(tree: Tree, start: str, parts: Parts, left_out: list[str], shown: str) -> list[Entry]:
    """The files below a folder that a pattern matches; why others are left out is noted."""
    named = PurePosixPath(parts[-1]).suffix.lower() if parts else ""
    found: list[Entry] = []
    num_listed = 0
    open_folders = [(start, frozenset([simplify(parts)]))]
    while open_folders:
        folder, patterns = open_folders.pop()
        entries = list(tree.list_folder(folder))
        num_listed += len(entries)
        if num_listed > MAX_LISTED:
            raise SourceError(
                f"{shown}: more than {MAX_LISTED:,} files and folders there; name a smaller part"
            )
        is_set = {MANIFEST, TOKENIZER} <= {entry.name for entry in entries}
        if is_set and folder != start:
            left_out.append(SETS)
            continue
        for entry in entries:
            rest = advance(patterns, entry.name)
            if is_set and is_own(entry.name):
                left_out.append(OWN)
            elif not rest:
                matches = advance(patterns, entry.name, hides=lambda name, parts: False)
                if matches and (entry.is_folder or () in matches):
                    left_out.append(HIDDEN_FOLDERS if entry.is_folder else HIDDEN)
            elif entry.is_folder:
                open_folders.append((entry.path, rest))
            elif () in rest:
                reason = doubt(entry.name, named)
                if reason:
                    left_out.append(reason)
                else:
                    found.append(entry)
    return found


def doubt(name: str, named: str) -> str | None:
    """Why a file that was met in a folder is left out; None if it is not.

    `named` is the suffix that the pattern spells. Of files that may describe others, the content
    would tell, which is not here yet.
    """
    if not has_suffix(PurePosixPath(name)):
        return name_suffix(name)
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in DOUBTFUL and suffix != named:
        return f"{suffix} not named by itself or as *{suffix}"
    return None


def advance(
    patterns: frozenset[Parts], name: str, hides: Callable[[str, Parts], bool] = is_hidden
) -> frozenset[Parts]:
    """What is to match below an entry, for each pattern that its name fits; () = everything.

    >>> sorted(advance(frozenset([("**", "*.txt")]), "a.txt"))
    [(), ('**', '*.txt')]
    """
    found: set[Parts] = set()
    waiting = list(patterns)
    while waiting:
        parts = simplify(waiting.pop())
        if parts[:1] == ("**",):
            waiting.append(parts[1:])
            if not hides(name, ()):
                found.add(parts)
        elif not hides(name, parts) and (not parts or fnmatchcase(name, parts[0])):
            found.add(simplify(parts[1:]))
    return frozenset(found)
