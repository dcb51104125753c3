"""Datasets of the Hugging Face Hub as pinned lists of files, and the files, checked and whole.

`datasets` says which files make a dataset's split; it neither runs code nor streams rows here.
Each file is then fetched in one piece and read like a local one.
"""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prep.sources.documents import SUFFIXES
from prep.sources.hub_requests import (
    PATIENT,
    FailedDownloadError,
    HubError,
    Report,
    Retry,
    ask,
    diagnose,
    explaining,
    forward_logs,
    say,
)

# What `datasets` reads to find a dataset's configs and splits.
CARD_FILES = ("README.md", ".huggingface.yaml", "dataset_infos.json")
PATHS_PER_REQUEST = 500


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


def resolve(
    repo: str,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    report: Report = say,
    retry: Retry = PATIENT,
) -> HubDataset:
    """Find the files of a dataset's split at the commit that `revision` now names.

    `report` gets one line for each request that is made again. Raises HubError for a dataset,
    revision, config or split that is not there, one that may not be read, files in formats that
    are not read here, or a Hub that cannot be reached.
    """
    with explaining(repo, revision):
        info = ask(lambda: _find_commit(repo, revision), repo, retry, report)
        name, commit = info.id, info.sha
        if info.gated:
            ask(lambda: _check_access(name), repo, retry, report)
        names_there = {file.rfilename for file in info.siblings or ()}
        for card in sorted(names_there.intersection(CARD_FILES)):
            ask(partial(_fetch_card, name, commit, card), repo, retry, report)
        builder = ask(lambda: _load_builder(name, config, commit), repo, retry, report)
        prefix = f"hf://datasets/{name}@{commit}/"
        paths = choose_files(builder.config.data_files or {}, repo, prefix, split)
        files: list[HubFile] = []
        for start in range(0, len(paths), PATHS_PER_REQUEST):
            part = paths[start : start + PATHS_PER_REQUEST]
            files += ask(partial(_describe_files, name, commit, part), repo, retry, report)
    facts = (builder.info.splits or {}).get(split)
    return HubDataset(
        repo,
        config,
        split,
        revision,
        commit,
        tuple(files),
        num_rows=(facts.num_examples or None) if facts else None,
        num_text_bytes=(facts.num_bytes or None) if facts else None,
    )


def download(
    dataset: HubDataset,
    file: HubFile,
    folder: Path,
    report: Report = say,
    retry: Retry = PATIENT,
) -> Path:
    """Fetch a file of a dataset into `folder`, unless it is there; returns its path.

    The file appears under its final name only when its size and hash are the Hub's. One process
    at a time may fetch a file into a folder; what a killed one left is removed. `report` gets one
    line for each request that is made again. Raises HubError for a file that is gone, may not be
    read, or does not come whole, and OSError for a disk that is full.
    """
    path = folder / choose_local_name(file.name)
    if path.is_file() and find_fault(path, file) is None:
        return path
    private = _private_folder(path)
    try:
        with explaining(dataset.repo, dataset.revision):
            fetched = ask(
                lambda: _fetch_whole(dataset, file, private),
                f"{dataset.repo}: {file.name}",
                retry,
                report,
            )
        os.replace(fetched, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(
                errno.ENOSPC, f"the disk is full; {file.name} did not fit", str(folder)
            ) from None
        raise
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return path


def remove_files(dataset: HubDataset, folder: Path) -> None:
    """Remove the files of a (part of a) dataset, whole or begun, from the folder of downloads."""
    for file in dataset.files:
        path = folder / choose_local_name(file.name)
        path.unlink(missing_ok=True)
        shutil.rmtree(_private_folder(path), ignore_errors=True)


def choose_local_name(name: str) -> str:
    """Return a file name of its own for a path of the Hub, with the same suffix.

    >>> choose_local_name("data/train-00000.parquet")
    '8730be03-train-00000.parquet'
    """
    digest = hashlib.sha256(name.encode("utf-8")).hexdigest()[:8]
    last = re.sub(r"[^A-Za-z0-9._-]", "_", name.rpartition("/")[2])
    return f"{digest}-{last[-150:]}"


def find_fault(path: Path, file: HubFile) -> str | None:
    """Say how a file differs from what the Hub has; None if it does not."""
    num_bytes = path.stat().st_size
    if num_bytes != file.num_bytes:
        return f"came with {num_bytes:,} bytes, the Hub has {file.num_bytes:,}"
    with path.open("rb") as opened:
        if file.sha256:
            wanted, digest = file.sha256, hashlib.sha256()
        elif file.git_sha1:
            # A git blob's id is the sha1 of this header and the content.
            wanted, digest = file.git_sha1, hashlib.sha1(f"blob {num_bytes}\0".encode())
        else:
            return None
        hashlib.file_digest(opened, lambda: digest)
    if digest.hexdigest() != wanted:
        return f"came with {digest.name} {digest.hexdigest()}, the Hub has {wanted}"
    return None


def choose_files(
    data_files: Mapping[str, Iterable[str]], repo: str, prefix: str, split: str
) -> list[str]:
    """Return the paths of a split's files, each once, from their urls below `prefix`."""
    if split not in data_files:
        raise HubError(
            f"{repo}: no split {split!r}; the splits are {', '.join(data_files) or 'none'}; "
            "name one with --split"
        )
    urls = list(dict.fromkeys(data_files[split]))
    foreign = [url for url in urls if not url.startswith(prefix)]
    if foreign:
        raise HubError(
            f"{repo}: lists {foreign[0]}, which is no file of its own; download what you need and "
            "prepare it with --input"
        )
    unread = [url for url in urls if not url.endswith(SUFFIXES)]
    if unread:
        raise HubError(
            f"{repo}: {unread[0].removeprefix(prefix)} ({len(unread):,} of {len(urls):,} files) "
            f"cannot be read; expected {', '.join(SUFFIXES)}; convert the files and prepare them "
            "with --input"
        )
    return [url.removeprefix(prefix) for url in urls]


def _private_folder(path: Path) -> Path:
    """Where a file lies until it is whole and checked."""
    return path.with_name(f".{path.name}.part")


def _find_commit(repo: str, revision: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(repo, revision=revision)


def _check_access(repo: str) -> None:
    from huggingface_hub import HfApi

    HfApi().auth_check(repo, repo_type="dataset")


def _fetch_card(repo: str, commit: str, name: str) -> None:
    """Put a card file into the Hub's cache, where `datasets` finds it.

    Left to itself, `datasets` goes on without the card where it could not be fetched.
    """
    from huggingface_hub import hf_hub_download

    hf_hub_download(repo, name, repo_type="dataset", revision=commit)


def _load_builder(repo: str, config: str | None, commit: str) -> Any:
    """Let `datasets` find out which files make which split of a config."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    datasets.disable_progress_bars()
    forward_logs("datasets")
    # The prefix keeps a local folder of this name from being taken for the dataset, and the empty
    # cache keeps an older download from standing in for it when the Hub does not answer.
    path = f"hf://datasets/{repo}"
    try:
        with tempfile.TemporaryDirectory() as cache:
            return datasets.load_dataset_builder(
                path, name=config, revision=commit, cache_dir=cache
            )
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        if isinstance(error, HfHubHTTPError) or diagnose(error):
            raise
        if type(error) is ValueError:
            check_config(datasets.get_dataset_config_names(path, revision=commit), repo, config)
        raise HubError(f"{repo}: cannot be resolved ({' '.join(str(error).split())})") from error


def check_config(configs: list[str], repo: str, config: str | None) -> None:
    """Raise HubError if a config is not there, or has to be named."""
    if config is not None and config not in configs:
        found = f"no config {config!r}"
    elif config is None and len(configs) > 1:
        found = "has several configs"
    else:
        return
    raise HubError(f"{repo}: {found}; name one of {', '.join(configs)} with --dataset-config")


def _describe_files(repo: str, commit: str, paths: list[str]) -> list[HubFile]:
    """Ask for the sizes and hashes of files, in their order."""
    from huggingface_hub import HfApi

    found = HfApi().get_paths_info(repo, paths, revision=commit, repo_type="dataset")
    entries: dict[str, Any] = {entry.path: entry for entry in found}
    missing = [path for path in paths if path not in entries]
    if missing:
        raise HubError(f"{repo}: {missing[0]} is not there at commit {commit}; try again")
    return [
        HubFile(path, entry.size, entry.lfs.sha256, None)
        if entry.lfs
        else HubFile(path, entry.size, None, entry.blob_id)
        for path, entry in ((path, entries[path]) for path in paths)
    ]


def _fetch_whole(dataset: HubDataset, file: HubFile, private: Path) -> Path:
    """Fetch a file into an empty folder of its own, and compare it with what the Hub has."""
    from huggingface_hub import hf_hub_download

    shutil.rmtree(private, ignore_errors=True)
    try:
        fetched = hf_hub_download(
            dataset.repo,
            file.name,
            repo_type="dataset",
            revision=dataset.revision,
            local_dir=private,
            cache_dir=private / "cache",  # not the user's, which may hold bytes of another day
        )
    except RuntimeError as error:  # what hf_xet raises, whatever happened
        raise FailedDownloadError(" ".join(str(error).split())) from error
    fault = find_fault(Path(fetched), file)
    if fault:
        raise FailedDownloadError(fault)
    return Path(fetched)
