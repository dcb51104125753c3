"""Files of the Hub by their paths, at a commit: `hf://` URLs, and the patterns of --data-files.

hf://datasets/owner/name/data/*.parquet
hf://datasets/owner/name@revision/en/c4-train.00000-of-01024.json.gz
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote

from prep.remote.hub_requests import ask, explaining
from prep.remote.pinned import RemoteFile
from prep.remote.retry import PATIENT, Retry, SourceError, warn
from prep.remote.tree import Entry, find_entries
from shards.screen.lines import Say

EXPECTED = "expected hf://datasets/owner/name/path or hf://datasets/owner/name@revision/path"
# A revision may have slashes: percent-encoded, or in the Hub's own names.
_FORM = re.compile(
    r"hf://datasets/(?P<repo>[^/@?#]+/[^/@?#]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.*))?",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Repository:
    """A dataset's repository at a commit, as a tree of folders."""

    repo: str
    commit: str
    report: Say
    retry: Retry

    def look(self, path: str) -> Entry | None:
        """The file or folder at a path."""
        with explaining(self.repo, self.commit, path):
            found = ask(partial(self._look, path), self.repo, self.retry, self.report)
        return describe(found[0]) if found else None

    def list_folder(self, folder: str) -> Iterable[Entry]:
        """What is directly in a folder."""
        from huggingface_hub.errors import RemoteEntryNotFoundError

        try:
            with explaining(self.repo, self.commit, folder):
                found = ask(partial(self._list, folder), self.repo, self.retry, self.report)
        except SourceError as error:
            if isinstance(error.__cause__, RemoteEntryNotFoundError):
                return []  # The fixed part of a pattern is no folder.
            raise
        return [describe(entry) for entry in found]

    def _look(self, path: str) -> list[Any]:
        from huggingface_hub import HfApi

        return HfApi().get_paths_info(self.repo, [path], revision=self.commit, repo_type="dataset")

    def _list(self, folder: str) -> list[Any]:
        from huggingface_hub import HfApi

        listed = HfApi().list_repo_tree(
            self.repo, folder or None, revision=self.commit, repo_type="dataset"
        )
        return list(listed)


def describe(found: Any) -> Entry:
    """A file or folder, as the library has it."""
    if not hasattr(found, "blob_id"):
        return Entry(found.path, is_folder=True)
    if found.lfs:
        return Entry(found.path, num_bytes=found.size, sha256=found.lfs.sha256)
    return Entry(found.path, num_bytes=found.size, git_sha1=found.blob_id)


def find_files(
    url: str,
    place: int,
    commits: dict[tuple[str, str | None], str],
    report: Say,
    retry: Retry,
    say: Say,
) -> list[RemoteFile]:
    """The files that a URL means; `commits` has the commit of each revision that was asked for.

    Raises SourceError with one line for what is not there, or may not be read.
    """
    repo, revision, path = parse_url(url)
    if (repo, revision) not in commits:
        commits[repo, revision] = find_commit(repo, revision, report, retry)[1]
    commit = commits[repo, revision]
    start = f"hf://datasets/{repo}@{commit}"
    tree = Repository(repo, commit, report, retry)
    shown = f"hf://datasets/{repo}{f'@{revision}' if revision else ''}/{path}".rstrip("/")
    files = []
    for entry in find_entries(tree, path, shown, say):
        name = f"{start}/{entry.path}"
        files.append(
            RemoteFile(name, entry.num_bytes, entry.sha256, entry.git_sha1, commit, place, name)
        )
    return files


def parse_url(url: str) -> tuple[str, str | None, str]:
    """The repository, revision and path of an hf:// URL; SourceError for any other.

    >>> parse_url("hf://datasets/a/b@refs/pr/1/en/*.json.gz")
    ('a/b', 'refs/pr/1', 'en/*.json.gz')
    >>> parse_url("hf://datasets/a/b")
    ('a/b', None, '')
    """
    found = _FORM.fullmatch(url.strip())
    if not found:
        raise SourceError(f"{url}: is not the place of a dataset's files; {EXPECTED}")
    revision = found["revision"]
    return found["repo"], unquote(revision) if revision else None, (found["path"] or "").strip("/")


def find_commit(
    repo: str,
    revision: str | None,
    report: Say = warn,
    retry: Retry = PATIENT,
    kind: str = "dataset",
) -> tuple[str, str, set[str]]:
    """A repository's full name, the commit that a revision now is, and the names of its files.

    `kind` is "dataset" or "model". SourceError if it is not there, or may not be read.
    """
    from huggingface_hub import HfApi

    look = partial(HfApi().repo_info, repo, revision=revision, repo_type=kind)
    with explaining(repo, revision, kind=kind):
        info: Any = ask(look, repo, retry, report)
        if info.gated:
            check = partial(HfApi().auth_check, info.id, repo_type=kind)
            ask(check, repo, retry, report)
    assert info.sha is not None
    return info.id, info.sha, {file.rfilename for file in info.siblings or ()}
