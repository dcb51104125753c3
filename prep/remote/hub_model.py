"""A model of the Hugging Face Hub: its files in the Hub's own cache, at the commit it is pinned to.

    hf://user/name
    hf://user/name@revision     a branch, a tag or a commit

What is in the cache already is not fetched again; each file is compared with the Hub's hash, every
time, so it takes as long as reading it.
"""

import re
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path

from prep.remote.hf_paths import describe, find_commit
from prep.remote.hub_files import download
from prep.remote.hub_requests import ask, explaining
from prep.remote.pinned import RemoteFile, find_fault
from prep.remote.retry import BRIEF, FailedDownloadError, Retry, SourceError, warn
from shards.screen.lines import Say, format_bytes

# A path that was made of it has lost a slash.
FORM = re.compile(r"hf:/{1,2}(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>.+))?")
CONFIG = "config.json"
# The first of them that a repository has is what is read of it.
WEIGHTS = (
    re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"),
    re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?"),
)
OTHERS = (
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "chat_template.jinja",
    "checksums.json",
)
INSTEAD = "name a local folder"
# Smaller ones are not told one by one.
TOLD_BYTES = 10**7


def fetch_model(place: Path | str, say: Say, report: Say = warn, retry: Retry = BRIEF) -> Path:
    """The folder of a model of the Hub, once all that is read of it is there, whole.

    `say` gets a line about each large file and one about the folder. SourceError for a repository
    or revision that is not there, may not be read, or holds no model.
    """
    found = FORM.fullmatch(str(place))
    if not found:
        raise SourceError(f"{place}: expected hf://user/name or hf://user/name@revision")
    repo, revision = found["repo"], found["revision"]
    _, commit, names = find_commit(repo, revision, report, retry, kind="model")
    wanted = choose_files(repo, names)
    with explaining(repo, commit, kind="model"):
        files = ask(partial(look_up, repo, commit, wanted), repo, retry, report, INSTEAD)
        paths = []
        for file in files:
            get = partial(fetch, repo, commit, file, say)
            paths.append(ask(get, f"{repo}: {file.name}", retry, report, INSTEAD))
    folder = paths[0].parent
    say(f"hf://{repo}@{commit}: in {folder}")
    return folder


def choose_files(repo: str, names: Collection[str]) -> list[str]:
    """Which of a repository's files are read; SourceError if it has no model."""
    for pattern in WEIGHTS:
        weights = sorted(name for name in names if pattern.fullmatch(name))
        if weights and CONFIG in names:
            return [name for name in OTHERS if name in names] + weights
    raise SourceError(
        f"{repo}: has no model that could be read; expected {CONFIG} and model.safetensors, or "
        "pytorch_model.bin"
    )


def look_up(repo: str, commit: str, names: Iterable[str]) -> list[RemoteFile]:
    """What the Hub says of files: their sizes and hashes."""
    from huggingface_hub import HfApi

    entries = map(describe, HfApi().get_paths_info(repo, list(names), revision=commit))
    return [RemoteFile(e.path, e.num_bytes, e.sha256, e.git_sha1) for e in entries]


def fetch(repo: str, commit: str, file: RemoteFile, say: Say) -> Path:
    """A file in the cache, compared with what the Hub has; a damaged one is fetched again."""
    from huggingface_hub import try_to_load_from_cache

    is_there = isinstance(try_to_load_from_cache(repo, file.name, revision=commit), str)
    if not is_there and file.num_bytes >= TOLD_BYTES:
        say(f"{repo}: fetching {file.name}, {format_bytes(file.num_bytes)}")
    fault: str | None = None
    for is_again in (False, True):
        path = download(repo, file.name, revision=commit, force_download=is_again)
        fault = find_fault(path, file, "the Hub")
        if fault is None:
            return path
    raise FailedDownloadError(str(fault))
