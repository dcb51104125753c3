"""A tokenizer of the Hugging Face Hub: its files, at the commit that it is pinned to."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prep.remote.hub_requests import ask, explaining
from prep.remote.pinned import RemoteFile, find_fault
from prep.remote.retry import PATIENT, FailedDownloadError, Retry, SourceError, warn
from shards.disk.json_files import check_json_size
from shards.screen.lines import Say


@dataclass(frozen=True)
class HubTokenizer:
    """A repository with a tokenizer.json, as asked for and as it was found at one commit."""

    repo: str
    requested_revision: str | None
    revision: str  # the commit, 40 hex digits
    end_token: str | None  # the eos_token of its tokenizer_config.json


def find_commit(
    repo: str, revision: str | None, report: Say = warn, retry: Retry = PATIENT
) -> tuple[str, set[str]]:
    """The commit that `revision` names now, and the files there; SourceError if that fails."""
    from huggingface_hub import HfApi

    with explaining(repo, revision, kind="model"):
        info = ask(lambda: HfApi().model_info(repo, revision=revision), repo, retry, report)
    return str(info.sha), {file.rfilename for file in info.siblings or ()}


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
    from huggingface_hub import HfApi, hf_hub_download

    found: Any = HfApi().get_paths_info(repo, [name], revision=commit)
    if not found:
        raise SourceError(f"{repo}: has no {name} at commit {commit}")
    entry = found[0]
    check_json_size(entry.size, f"{repo}: {name}")
    # A cache of its own: the user's may hold older bytes.
    options: dict[str, Any] = {
        "local_dir": folder,
        "cache_dir": folder / "cache",
        "force_download": True,
    }
    try:
        path = Path(hf_hub_download(repo, name, revision=commit, **options))
    except RuntimeError as error:  # what hf_xet raises, whatever happened
        raise FailedDownloadError(" ".join(str(error).split())) from error
    sha256 = entry.lfs.sha256 if entry.lfs else None
    file = RemoteFile(name, entry.size, sha256, None if sha256 else entry.blob_id)
    fault = find_fault(path, file, "the Hub")
    if fault:
        raise FailedDownloadError(fault)
    return path.read_bytes()
