"""Folder names that may be URLs: told apart from paths, and printed without their secrets.

The command line turns its arguments into Paths, which turns `s3://bucket/set` into
`s3:/bucket/set`; `restore_url` undoes that.
"""

import re
from pathlib import Path

# At least two letters, so that C:/ is a path.
SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):(?:/+|$)")


def is_url(name: str | Path) -> bool:
    """Whether a folder's name is a URL.

    >>> is_url("s3://bucket/set"), is_url(Path("gs://bucket/set")), is_url("data/shards")
    (True, True, False)
    >>> is_url(Path("s3://"))
    True
    """
    return SCHEME.match(str(name)) is not None


def restore_url(name: str | Path) -> str:
    """The URL that a Path was made from.

    >>> restore_url(Path("s3://bucket/set")), restore_url(Path("file:///mnt/set"))
    ('s3://bucket/set', 'file:///mnt/set')
    """
    return SCHEME.sub(lambda found: found[1] + (":///" if found[1] == "file" else "://"), str(name))


def show_url(url: str) -> str:
    """A URL that is safe to print: without credentials and query.

    >>> show_url("s3://key:secret@bucket/set/?region=eu-west-1")
    's3://bucket/set'
    """
    # A secret that was not percent-encoded may contain any character.
    url = re.sub(r"://[^/@:]*:.*@", "://", url.partition("?")[0])
    return re.sub(r"://[^/@]*@", "://", url).rstrip("/")


def refuse_url(name: str | Path) -> None:
    """ValueError with the command to run if `name`, which must be a local folder, is a URL."""
    if not is_url(name):
        return
    url = show_url(restore_url(name))
    folder = url.rsplit("/", 1)[-1] or "shards"
    raise ValueError(
        f"{url}: shards are read from the local disk; download them with: "
        f"velocity shards pull {url} {folder}/ and name {folder}/ instead"
    )
