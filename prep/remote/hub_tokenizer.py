"""A tokenizer of the Hugging Face Hub: its files, at the commit that it is pinned to."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from prep.remote.hf_paths import describe
from prep.remote.hub_files import fetch_whole
from prep.remote.hub_requests import ask, explaining
from prep.remote.pinned import RemoteFile
from prep.remote.retry import PATIENT, Retry, SourceError, warn
from shards.disk.json_files import check_json_size
from shards.screen.lines import Say


@dataclass(frozen=True)
class HubTokenizer:
    """A repository with a tokenizer.json, as asked for and as it was found at one commit."""

    repo: str
    requested_revision: str | None
    revision: str  # the commit, 40 hex digits
    end_token: str | None  # the eos_token of its tokenizer_config.json


def fetch_small(
    repo: str, commit: str, name: str, report: Say = warn, retry: Retry = PATIENT
) -> bytes:
    """A JSON file of a repository at a commit, compared with the Hub's hash.

    Raises SourceError if it is gone, may not be read or does not arrive whole, and ValueError if
    it is larger than any of its kind.
    """
    with (
        explaining(repo, commit, name, kind="model"),
        tempfile.TemporaryDirectory(prefix="velocity-") as folder,
    ):
        return ask(
            lambda: _fetch(repo, commit, name, Path(folder)), f"{repo}: {name}", retry, report
        )


def _fetch(repo: str, commit: str, name: str, folder: Path) -> bytes:
    from huggingface_hub import HfApi

    found = HfApi().get_paths_info(repo, [name], revision=commit)
    if not found:
        raise SourceError(f"{repo}: has no {name} at commit {commit}")
    entry = describe(found[0])
    check_json_size(entry.num_bytes, f"{repo}: {name}")
    file = RemoteFile(name, entry.num_bytes, entry.sha256, entry.git_sha1)
    return fetch_whole(repo, commit, name, file, folder / "fetched", "model").read_bytes()
