"""Datasets of the Hugging Face Hub as lists of files, pinned to a commit.

`datasets` says which files make a dataset's split; it neither runs code nor streams rows here.
"""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from prep.remote.hf_paths import Repository, describe, find_commit
from prep.remote.hub_files import HubDataset, HubFile
from prep.remote.hub_requests import ask, diagnose, explaining, forward_logs
from prep.remote.retry import PATIENT, Retry, SourceError, warn
from prep.remote.tree import Entry, find_entries
from prep.request import KINDS, SUFFIXES
from prep.sources.walk import HIDDEN, describe_left_out, has_suffix, name_suffix
from shards.screen.lines import Say

# What `datasets` reads to find a dataset's configs and splits.
CARD_FILES = ("README.md", ".huggingface.yaml", "dataset_infos.json")
# Part of every repository.
GIT_FILES = (".gitattributes", ".gitignore")
PATHS_PER_REQUEST = 500


def resolve(
    repo: str,
    configs: tuple[str, ...] = (),
    split: str = "train",
    revision: str | None = None,
    report: Say = warn,
    retry: Retry = PATIENT,
    say: Say = lambda line: None,
    data_files: tuple[str, ...] = (),
) -> HubDataset:
    """Find the files of a dataset's split at the commit that `revision` now names.

    With several `configs`, the files of each in that order, each file once; without any, those of
    the only one. With `data_files`, paths and patterns in the repository, those that they match,
    whatever its configs are.

    `report` gets one line for each request that is made again, `say` one about the files of the
    repository that no split has. Raises SourceError for a dataset,
    revision, config or split that does not exist or may not be read, files in formats that are
    not read here, or a Hub that cannot be reached.
    """
    name, commit, names_there = find_commit(repo, revision, report, retry)
    first = configs[0] if configs else None
    dataset = HubDataset(
        repo, first, split, revision, commit, (), None, None, configs[1:], data_files
    )
    if data_files:
        return replace(dataset, files=match_files(dataset, name, report, retry, say))
    with explaining(repo, revision):
        for card in sorted(names_there.intersection(CARD_FILES)):
            with explaining(repo, commit, card):
                ask(partial(_fetch_card, name, commit, card), repo, retry, report)
        builders = [
            ask(partial(_load_builder, name, chosen, commit), repo, retry, report)
            for chosen in configs or (None,)
        ]
        prefix = f"hf://datasets/{name}@{commit}/"
        listed, paths = set[str](), dict[str, None]()
        for builder in builders:
            found = builder.config.data_files or {}
            paths.update(dict.fromkeys(choose_files(found, repo, prefix, split)))
            listed |= {url.removeprefix(prefix) for urls in found.values() for url in urls}
        left_out = describe_unlisted(names_there - listed, len(builders[0].builder_configs) > 1)
        if left_out:
            say(f"{repo}: {left_out}")
        files = _describe_all(repo, name, commit, list(paths), report, retry)
    facts = [(builder.info.splits or {}).get(split) for builder in builders]
    num_rows, num_text_bytes = (
        sum_known([getattr(fact, key, None) for fact in facts])
        for key in ("num_examples", "num_bytes")
    )
    return replace(dataset, files=files, num_rows=num_rows, num_text_bytes=num_text_bytes)


def sum_known(counts: list[int | None]) -> int | None:
    """The sum of what a card says of each config; None if it leaves one out.

    >>> sum_known([2, 3]), sum_known([2, None]), sum_known([0])
    (5, None, None)
    """
    known = [count for count in counts if count]
    return sum(known) if len(known) == len(counts) else None


def match_files(
    dataset: HubDataset, name: str, report: Say, retry: Retry, say: Say
) -> tuple[HubFile, ...]:
    """The files that the dataset's patterns match, in their order, each once."""
    tree = Repository(name, dataset.revision, report, retry)
    found = {
        entry.path: as_file(entry)
        for pattern in dataset.data_files
        for entry in find_entries(tree, pattern, f"{dataset.repo}: {pattern}", say)
    }
    return tuple(found.values())


def choose_files(
    data_files: Mapping[str, Iterable[str]], repo: str, prefix: str, split: str
) -> list[str]:
    """Return the paths of a split's files, each once, from their urls below `prefix`."""
    if split not in data_files:
        raise SourceError(
            f"{repo}: no split {split!r}; the splits are {', '.join(data_files) or 'none'}; "
            "name one with --split"
        )
    urls = list(dict.fromkeys(data_files[split]))
    foreign = [url for url in urls if not url.startswith(prefix)]
    if foreign:
        raise SourceError(
            f"{repo}: lists {foreign[0]}, which is not one of its own files; download what "
            "you need and prepare it with --input"
        )
    unread = [url for url in urls if not url.lower().endswith(SUFFIXES)]
    if unread:
        raise SourceError(
            f"{repo}: {unread[0].removeprefix(prefix)} ({len(unread):,} of {len(urls):,} files) "
            f"cannot be read; expected {KINDS}; convert the files and prepare them "
            "with --input"
        )
    return [url.removeprefix(prefix) for url in urls]


def describe_unlisted(names: Iterable[str], has_configs: bool) -> str:
    """The files of a repository that no split has, by reason and count; "" if there are none.

    Those in formats that are read here may belong to other configs, if there are any.

    >>> describe_unlisted(["README.md", ".gitattributes", "a.pdf", "b.jsonl"], has_configs=False)
    '2 files left out: .jsonl in no split 1, .pdf 1'
    """
    reasons = []
    for path in sorted(PurePosixPath(name) for name in {*names}.difference(CARD_FILES, GIT_FILES)):
        if any(part.startswith((".", "_")) for part in path.parts):
            reasons.append(HIDDEN)
        elif not has_suffix(path):
            reasons.append(name_suffix(path.name))
        elif not has_configs:
            reasons.append(f"{name_suffix(path.name)} in no split")
    return describe_left_out(reasons)


def _fetch_card(repo: str, commit: str, name: str) -> None:
    """Put a card file into the Hub's cache, where `datasets` finds it.

    Left to itself, `datasets` continues without the card if it cannot be fetched.
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
        raise SourceError(
            f"{repo}: cannot be resolved ({' '.join(str(error).split())}); --data-files takes "
            "files of the repository whatever its configs are, such as --data-files 'en/*.json.gz'"
        ) from error


def check_config(configs: list[str], repo: str, config: str | None) -> None:
    """Raise SourceError if a config does not exist, or if one must be named."""
    if config is not None and config not in configs:
        found = f"no config {config!r}"
    elif config is None and len(configs) > 1:
        found = "has several configs"
    else:
        return
    raise SourceError(f"{repo}: {found}; name one of {', '.join(configs)} with --dataset-config")


def _describe_all(
    repo: str, name: str, commit: str, paths: list[str], report: Say, retry: Retry
) -> tuple[HubFile, ...]:
    """The sizes and hashes of files, asked for some at a time."""
    files: list[HubFile] = []
    for start in range(0, len(paths), PATHS_PER_REQUEST):
        part = paths[start : start + PATHS_PER_REQUEST]
        files += ask(partial(_describe_files, name, commit, part), repo, retry, report)
    return tuple(files)


def _describe_files(repo: str, commit: str, paths: list[str]) -> list[HubFile]:
    """Ask for the sizes and hashes of files, in their order."""
    from huggingface_hub import HfApi

    found = HfApi().get_paths_info(repo, paths, revision=commit, repo_type="dataset")
    entries = {entry.path: describe(entry) for entry in found}
    missing = [path for path in paths if path not in entries]
    if missing:
        raise SourceError(f"{repo}: {missing[0]} is not there at commit {commit}; try again")
    return [as_file(entries[path]) for path in paths]


def as_file(entry: Entry) -> HubFile:
    """A file of the repository as one of the dataset's."""
    return HubFile(entry.path, entry.num_bytes, entry.sha256, entry.git_sha1)
