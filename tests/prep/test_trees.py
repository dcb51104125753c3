"""Folders and patterns elsewhere mean the files that they would mean on this machine."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from prep.remote import tree
from prep.remote.retry import SourceError
from prep.remote.tree import Entry, find_entries
from prep.sources.local import find_files

FILES = [
    "a.jsonl",
    "a.pdf",
    ".hidden.jsonl",
    "_old.jsonl",
    "README.md",
    "notes.TXT",
    "en/part-0.json.gz",
    "en/part-1.json.gz",
    "en/validation.json.gz",
    "en/_SUCCESS",
    "en/.tmp/x.txt",
    "en/deep/er/a.parquet",
    "en.noblocklist/part-0.json.gz",
    "_private/b.txt",
    "_private/.c.txt",
    "de/part-0.jsonl",
    "de/part-10.jsonl",
    "de/part-2.jsonl",
    "x/y/z/part-0.txt",
    "x/part-0.txt",
    "set/manifest.json",
    "set/tokenizer.json",
    "set/train-00000.bin",
    "set/train-00000.docs.parquet",
    "set/z.txt",
]
PATTERNS = [
    ".",
    "*",
    "**",
    "**/*",
    "en",
    "en/*",
    "en/part-*",
    "en/part-0.json.gz",
    "**/part-0.*",
    "*/part-0.*",
    "x/**",
    "x/**/part-0.txt",
    "*.jsonl",
    "[de]*/part-*",
    "e*",
    "*/deep",
    "*/deep/**",
    "_private",
    "_private/*",
    "_*",
    ".hidden*",
    "**/_old.jsonl",
    "set",
    "set/*",
    "x/*/z",
]


class FolderTree:
    """A folder of this machine, as any other tree."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listed: list[str] = []

    def look(self, path: str) -> Entry | None:
        found = self.root / path
        return Entry(path, found.is_dir()) if found.exists() else None

    def list_folder(self, folder: str) -> Iterable[Entry]:
        self.listed.append(folder)
        found = self.root / folder
        for inner in found.iterdir() if found.is_dir() else ():
            yield Entry(inner.relative_to(self.root).as_posix(), inner.is_dir())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_means_the_same_here_and_elsewhere(root: Path, pattern: str) -> None:
    paths, left_out = find_files([str(root / pattern)])
    said: list[str] = []
    found = find_entries(FolderTree(root), pattern, "hf", said.append)
    assert [entry.path for entry in found] == [path.relative_to(root).as_posix() for path in paths]
    assert said == ([f"hf: {left_out}"] if left_out else [])


def test_only_folders_that_may_hold_a_match_are_listed(root: Path) -> None:
    here = FolderTree(root)
    find_entries(here, "en*/part-*", "hf", lambda line: None)
    assert sorted(here.listed) == ["", "en", "en.noblocklist"]
    here = FolderTree(root)
    find_entries(here, "en/part-*", "hf", lambda line: None)
    assert here.listed == ["en"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none", "u: there is no such file or folder; check the URL"),
        ("none/*", r"u: no file ending in .parquet, .* there$"),
        ("a.pdf", "u: expected a file ending in .parquet"),
        ("*.md", r"u: no file ending in .* there \(1 file left out: .md 1\)$"),
    ],
)
def test_what_means_no_file_is_one_line(root: Path, path: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        find_entries(FolderTree(root), path, "u", lambda line: None)


def test_json_that_lies_beside_is_read_when_it_is_named(tmp_path: Path) -> None:
    for name in ("a.json", "b.jsonl", "dataset_info.json"):
        (tmp_path / name).write_text("x")
    said: list[str] = []

    def find(path: str) -> list[str]:
        return [entry.path for entry in find_entries(FolderTree(tmp_path), path, "u", said.append)]

    assert find("") == ["b.jsonl"]
    assert said == ["u: 2 files left out: .json not named by itself or as *.json 2"]
    assert find("a.json") == ["a.json"]
    assert find("*.json") == ["a.json", "dataset_info.json"]


def test_a_listing_without_end_is_given_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_LISTED", 10)
    with pytest.raises(SourceError, match="u: more than 10 files and folders there; name a small"):
        find_entries(FolderTree(root), "**", "u", lambda line: None)


def test_a_file_of_a_kind_that_is_read_is_not_denied(tmp_path: Path) -> None:
    (tmp_path / "info.json").write_text("{}")
    message = r"u: no file of documents there \(1 file left out: .json not named by itself or as"
    for path in ("", "*", "info*"):
        with pytest.raises(SourceError, match=message):
            find_entries(FolderTree(tmp_path), path, "u", lambda line: None)
