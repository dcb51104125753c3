"""The files that a folder or a pattern means: each real file once, and what was left out, counted.

A pattern that matches a folder means everything below it, so `in`, `in/*` and `in/**` are the
same. Links are followed, after what is really there, so a file has its own name where it has one.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from prep.files.door import examine, refuse_special
from prep.request import KINDS, SUFFIXES
from prep.sources.saved import OTHER_SPLITS, find_unsaved
from shards.disk.layout import MANIFEST, PULL, TOKENIZER, VERSIONS, WORK

# Tells a file from all others on this machine, whatever it is called.
Identity = tuple[int, int, str]
# What is left of a pattern, a name each; () = everything.
Parts = tuple[str, ...]
# A folder or link, and what to match below it.
Step = tuple[Path, Parts]

_MAGIC = re.compile(r"[*?[]")
_PACKED = re.compile(r"(\.\w{1,8})?\.(gz|zst|bz2|xz|lz4|zip)", re.IGNORECASE)
HIDDEN, HIDDEN_FOLDERS, SETS = "hidden", "hidden folders", "sets of shards"
OWN, AGAIN, NO_SUFFIX = "of a set of shards", "the same file again", "without a suffix"
# In the reasons of files that are of a kind that is read, but not of documents.
WITHOUT = " without the "
_MAX_REASONS = 12


class Walk:
    """Collects files; may be given several entries, which share what was found."""

    def __init__(
        self, refuses: Callable[[Path], str | None] = lambda path: None, split: str = "train"
    ) -> None:
        # Why a file that was not named itself is left out, whatever its suffix; None = it is not.
        self.refuses = refuses
        # The one to take of a folder that `datasets` saved with several.
        self.split = split
        self.found: dict[Identity, Path] = {}
        self.left_out: dict[Path, str] = {}
        # Files that were taken, now or earlier.
        self.num_taken = 0

    def add_file(self, path: Path) -> None:
        """Take a file that was named itself, whatever its name begins with."""
        status = examine(path)
        refuse_special(path, status)
        if not has_suffix(path):
            raise ValueError(f"{path}: expected a file ending in {KINDS}")
        self._take(path, status)

    def add_folder(self, path: Path) -> None:
        """Take everything below a folder that was named itself."""
        self._add(path, ())

    def add_pattern(self, pattern: Path) -> bool:
        """Take what a pattern matches, if anything; `**` stands for any number of folders."""
        before = self.num_taken, len(self.left_out)
        fixed = next(i for i, part in enumerate(pattern.parts) if _MAGIC.search(part))
        start = Path(*pattern.parts[:fixed])
        if start.is_dir():
            self._add(start, pattern.parts[fixed:])
        return before != (self.num_taken, len(self.left_out))

    def _add(self, start: Path, parts: Parts) -> None:
        """Take what matches `parts` below a folder: everything, if there are none."""
        visited: set[tuple[Identity, Parts]] = set()
        open_folders: list[Step] = [(start, parts)]
        links: list[Step] = []
        while open_folders or links:
            if not open_folders:
                # What is really there has been taken under its own name.
                open_folders, links = self._follow(sorted(links)), []
                continue
            folder, parts = open_folders.pop()
            parts = simplify(parts)
            key = (identify(folder, examine(folder)), parts)
            if key in visited:
                continue
            visited.add(key)
            if parts[:1] == ("**",):
                open_folders.append((folder, parts[1:]))
            folders = []
            for entry, rest in self._choose(folder, parts, is_start=folder == start):
                path = folder / entry.name
                if entry.is_symlink():
                    links.append((path, rest))
                elif entry.is_dir():
                    folders.append((path, rest))
                elif not rest:
                    self._take_if_readable(path)
            open_folders += reversed(folders)

    def _follow(self, links: list[Step]) -> list[Step]:
        """Take the files that links lead to; returns those that lead to folders."""
        folders = []
        for path, rest in links:
            if stat.S_ISDIR(examine(path).st_mode):
                folders.append((path, rest))
            elif not rest:
                self._take_if_readable(path)
        return folders[::-1]

    def _choose(
        self, folder: Path, parts: Parts, is_start: bool
    ) -> Iterator[tuple["os.DirEntry[str]", Parts]]:
        """Yield the entries of a folder that match, each with what is to match below it."""
        entries = list_folder(folder)
        names = {entry.name for entry in entries}
        is_set = bool(names & {WORK, PULL}) or {MANIFEST, TOKENIZER} <= names
        if is_set and not is_start:
            self.left_out[folder] = SETS
            return
        unsaved = find_unsaved(folder, names, self.split)
        for entry in entries:
            rest = match(entry, parts)
            if rest is None:
                continue
            if entry.name in unsaved:
                self.left_out[folder / entry.name] = unsaved[entry.name]
            elif is_set and is_own(entry.name):
                self.left_out[folder / entry.name] = OWN
            elif is_hidden(entry.name, parts):
                if os.path.isdir(entry.path):
                    self.left_out[folder / entry.name] = HIDDEN_FOLDERS
                elif not rest:
                    self.left_out[folder / entry.name] = HIDDEN
            else:
                yield entry, rest

    def _take_if_readable(self, path: Path) -> None:
        """Take a file that was met on the way, or count why it is left out."""
        if not has_suffix(path):
            self.left_out[path] = name_suffix(path.name)
            return
        status = examine(path)
        refuse_special(path, status)
        reason = self.refuses(path)
        if reason:
            self.left_out[path] = reason
        else:
            self._take(path, status)

    def _take(self, path: Path, status: os.stat_result) -> None:
        """Take a file, unless it was taken under another name."""
        path = Path(os.path.abspath(path))
        self.num_taken += 1
        if self.found.setdefault(identify(path, status), path) != path:
            self.left_out[path] = AGAIN

    def list_reasons(self) -> list[str]:
        """Why each file and folder was left out that was not taken elsewhere."""
        taken = set(self.found.values())
        left_out = {Path(os.path.abspath(path)): why for path, why in self.left_out.items()}
        return [why for path, why in left_out.items() if path not in taken]


def describe_left_out(reasons: Iterable[str]) -> str:
    """What was left out, by reason and count, from the reason for each; "" for none.

    >>> describe_left_out([".md", ".c", HIDDEN_FOLDERS])
    '2 files and 1 folder left out: .c 1, .md 1, hidden folders 1'
    """
    counts = Counter(reasons)
    if not counts:
        return ""
    num_folders = counts[HIDDEN_FOLDERS] + counts[SETS] + counts[OTHER_SPLITS]
    num_files = counts.total() - num_folders
    sizes = [(num_files, "file"), (num_folders, "folder")]
    what = " and ".join(f"{n:,} {word}{'s' * (n != 1)}" for n, word in sizes if n)
    listed = sorted(counts.items(), key=lambda item: (not item[0].startswith("."), item[0]))
    if len(listed) > _MAX_REASONS:
        rest = sum(count for _, count in listed[_MAX_REASONS:])
        listed = [*listed[:_MAX_REASONS], ("others", rest)]
    return f"{what} left out: " + ", ".join(f"{why} {n:,}" for why, n in listed if n)


def describe_none(reasons: Collection[str]) -> str:
    """What to say of a place with no file to read, from the reason for each that is there.

    >>> describe_none([".json without the key 'content'"])[:63]
    'no file of documents there (1 file left out: .json without the '
    """
    line = describe_left_out(reasons)
    is_of_kind = any(reason.partition(" ")[0] in SUFFIXES for reason in reasons)
    found = "no file of documents there" if is_of_kind else f"no file ending in {KINDS} there"
    advice = ""
    if any(WITHOUT in reason for reason in reasons):
        advice = "; name the right key or column with --text-column"
    return found + (f" ({line})" if line else "") + advice


def is_pattern(path: Path) -> bool:
    """Whether a path has characters that stand for others."""
    return _MAGIC.search(str(path)) is not None


def simplify(parts: Parts) -> Parts:
    """The same pattern of what is in a folder, without what says nothing.

    >>> simplify(("**", "*")), simplify(("a*", "**")), simplify(("*", "*"))
    ((), ('a*',), ('*', '*'))
    """
    while parts[-1:] == ("**",):
        parts = parts[:-1]
    return () if parts[-1:] == ("*",) and set(parts[:-1]) <= {"**"} else parts


def match(entry: "os.DirEntry[str]", parts: Parts) -> Parts | None:
    """What is to match below an entry of a folder, if the entry itself matches; else None."""
    head, *rest = parts or ("*",)
    if head == "**":
        # As a file it is matched by what follows; a broken link may have led to a folder.
        is_broken = entry.is_symlink() and not os.path.exists(entry.path)
        return parts if is_broken or os.path.isdir(entry.path) else None
    is_match = fnmatchcase(entry.name, head) if _MAGIC.search(head) else entry.name == head
    return tuple(rest) if is_match else None


def is_hidden(name: str, parts: Parts) -> bool:
    """Whether a name is left out for its first letter, which the pattern does not spell."""
    return name.startswith((".", "_")) and not (parts and parts[0].startswith((".", "_")))


def identify(path: Path, status: os.stat_result) -> Identity:
    """The identity of a file or folder: its number, or on a disk without numbers its real path."""
    return status.st_dev, status.st_ino, "" if status.st_ino else os.path.realpath(path)


def has_suffix(path: PurePath) -> bool:
    """Whether a file's name ends as those that are read do, in capitals or not."""
    return path.name.lower().endswith(SUFFIXES)


def name_suffix(name: str) -> str:
    """The suffix of a file that is left out, with that below a compression's.

    >>> name_suffix("a.b.csv"), name_suffix("a.TXT.gz"), name_suffix("Makefile")
    ('.csv', '.txt.gz', 'without a suffix')
    """
    suffix = Path(name).suffix
    packed = _PACKED.search(name)
    if packed and name.endswith(packed[0]):
        suffix = packed[0]
    return suffix.lower() or NO_SUFFIX


def is_own(name: str) -> bool:
    """Whether a name in the folder of a set of shards is one of the set's own."""
    return name in (MANIFEST, TOKENIZER, VERSIONS) or name.endswith((".bin", ".docs.parquet"))


def list_folder(path: Path) -> list["os.DirEntry[str]"]:
    """A folder's entries by name; ValueError naming the folder if it cannot be opened."""
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(
            f"{path}: this folder cannot be opened ({error.strerror}); make it readable, or name "
            "the files that are meant"
        ) from None
