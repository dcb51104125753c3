"""One file of the Hub: fetched whole, and compared with the Hub's hash."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prep.remote.hub_requests import ask, explaining
from prep.remote.pinned import RemoteFile, find_fault
from prep.remote.retry import FailedDownloadError, Retry
from shards.disk.folders import remove
from shards.screen.lines import Say

# hf://datasets/owner/name@commit/path
PLACE = re.compile(r"hf://datasets/([^/@]+(?:/[^/@]+)?)@([0-9a-f]{40})/(.+)", re.DOTALL)


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
    more_configs: tuple[str, ...] = ()  # after the first
    data_files: tuple[str, ...] = ()  # patterns that were given instead of configs

    @property
    def configs(self) -> tuple[str, ...]:
        """Those that were asked for, in that order."""
        return () if self.config is None else (self.config, *self.more_configs)

    @property
    def content(self) -> dict[str, Any]:
        """What a plan says of it, besides its files; no key that earlier plans had not, if empty.

        It is what the dataset is made from again.
        """
        content = asdict(self)
        del content["files"]
        for key in ("more_configs", "data_files"):
            content[key] = list(content[key])
            if not content[key]:
                del content[key]
        return content

    def locate(self, file: HubFile) -> RemoteFile:
        """One of its files, with the place to fetch it from."""
        url = f"hf://datasets/{self.repo}@{self.revision}/{file.name}"
        return RemoteFile(file.name, file.num_bytes, file.sha256, file.git_sha1, url=url)


def fetch(file: RemoteFile, private: Path, report: Say, retry: Retry) -> Path:
    """Fetch a file of the Hub into an empty folder of its own."""
    found = PLACE.fullmatch(file.url)
    assert found, file.url
    repo, commit, path = found.groups()
    with explaining(repo, commit, path):
        return ask(
            lambda: fetch_whole(repo, commit, path, file, private),
            f"{repo}: {path}",
            retry,
            report,
        )


def fetch_whole(
    repo: str, commit: str, path: str, file: RemoteFile, private: Path, kind: str = "dataset"
) -> Path:
    """Fetch a file into an empty folder, and compare it with what the Hub has.

    `kind` is that of the repository: "dataset" or "model".
    """
    remove(private, ignore_errors=True)
    fetched = download(
        repo,
        path,
        repo_type=kind,
        revision=commit,
        local_dir=private,
        cache_dir=private / "cache",  # not the user's, which may hold older bytes
    )
    fault = find_fault(fetched, file, "the Hub")
    if fault:
        raise FailedDownloadError(fault)
    return fetched


def download(repo: str, path: str, **options: Any) -> Path:
    """Fetch a file with the library's own function, whose faults are then all of a kind."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, path, **options))
    except RuntimeError as error:  # what hf_xet raises, whatever happened
        raise FailedDownloadError(" ".join(str(error).split())) from error
