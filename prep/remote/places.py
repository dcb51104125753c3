"""The files that URLs given to --input mean, listed and pinned."""

import os
from collections.abc import Sequence
from dataclasses import replace

from prep.remote import hf_paths, https
from prep.remote.pinned import RemoteFile, find_scheme, is_remote, name_url
from prep.remote.retry import BRIEF, Retry, SourceError, warn
from shards.screen.lines import Say
from shards.screen.url import check_url, is_url

EXPECTED = "expected a URL of https, hf, s3 or gs, or a path on this machine"


def part_inputs(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """The paths among what --input gave, and the URLs.

    >>> part_inputs(["a/*.txt", "s3://bucket/x", "file:///b.txt"])
    (['a/*.txt', '/b.txt'], ['s3://bucket/x'])
    """
    paths = [strip_file(entry) for entry in inputs if not is_remote(entry)]
    return paths, [entry.strip() for entry in inputs if is_remote(entry)]


def check_inputs(inputs: Sequence[str]) -> None:
    """ValueError for a URL that cannot be one, before anything is made or asked."""
    paths, urls = part_inputs(inputs)
    for path in paths:
        if is_url(path) and not os.path.lexists(path):  # Keys without the s3:// before them.
            check_url(path)
    for url in urls:
        match find_scheme(url):
            case "http" | "https":
                https.check_place(url, name_url(url))
            case "hf":
                hf_paths.parse_url(url)
            case "s3" | "gs" | "gcs":
                from prep.remote import buckets

                buckets.check_place(url)
            case _:
                raise SourceError(f"{name_url(url)}: nothing is read from there; {EXPECTED}")


def strip_file(entry: str) -> str:
    """The path of a file:// URL; another entry as it is."""
    if find_scheme(entry) != "file":
        return entry
    path = entry.strip()[len("file://") :]
    if not path.startswith("/"):
        raise ValueError(f"{entry}: a file URL names no machine; expected file:///folder")
    return path


def name_places(urls: Sequence[str]) -> tuple[str, ...]:
    """What a plan says of the URLs: which they are, without keys and queries."""
    return tuple(name_url(url).rstrip("/") for url in urls)


def describe_places(places: Sequence[str]) -> str:
    """The first of the places, and how many more there are.

    >>> describe_places(["s3://bucket/a", "s3://bucket/b", "s3://bucket/c"])
    's3://bucket/a and 2 more URLs'
    """
    num_more = len(places) - 1
    return places[0] + (f" and {num_more:,} more URL{'s' * (num_more > 1)}" if num_more else "")


def find_remote(
    urls: Sequence[str],
    say: Say = lambda line: None,
    report: Say = warn,
    retry: Retry = BRIEF,
) -> list[RemoteFile]:
    """The files that URLs mean, in the given order, each once; those of a folder are sorted.

    The URLs are such as `check_inputs` lets through. `say` gets a line about what folders and
    patterns hold besides, `report` one for each request that is made again. Raises
    SourceError or StorageError for what cannot be had.
    """
    found: dict[str, RemoteFile] = {}
    commits: dict[tuple[str, str | None], str] = {}
    for place, url in enumerate(urls):
        match find_scheme(url):
            case "http" | "https":
                files = [https.find_file(url, place, report, retry)]
            case "hf":
                files = hf_paths.find_files(url, place, commits, report, retry, say)
            case _:
                from prep.remote import buckets  # pyarrow.fs loads the libraries of all clouds

                files = buckets.find_files(url, place, report, retry, say)
        for file in files:
            first = found.setdefault(file.name, file)
            if is_other(first, file):
                raise SourceError(
                    f"{file.name}: two files would have this name, which is a URL without keys and "
                    "query; download one of them and prepare the local file with --input"
                )
    return list(found.values())


def is_other(first: RemoteFile, second: RemoteFile) -> bool:
    """Whether two files of one name may differ: by the query, or by where a bucket is."""
    return first.url != second.url and replace(first, place=0) != replace(second, place=0)


def with_urls(files: Sequence[RemoteFile], urls: Sequence[str]) -> tuple[RemoteFile, ...]:
    """Files of a stored plan, which keeps no keys, with the URLs that were typed again."""
    return tuple(
        replace(file, url=file.name if find_scheme(file.name) == "hf" else urls[file.place])
        for file in files
    )
