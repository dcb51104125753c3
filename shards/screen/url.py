"""Folder names that may be URLs: told apart from paths, checked, printed without their secrets.

The command line turns its arguments into Paths, which turns `s3://bucket/set` into
`s3:/bucket/set`; `restore_url` undoes that. `read_place` reads an option that takes both.
"""

import re
from pathlib import Path

from shards.screen.names import quote

# At least two letters, so that C:/ is a path.
SCHEME = re.compile(r"^\s*([A-Za-z][A-Za-z0-9+.-]+):(/+|$)")
# key:secret@bucket without its scheme or slashes. Taken for a path, it would be a folder's name.
BARE_KEYS = re.compile(r"^\s*/*[^/:]{2,}:[^/]*@")
# Everything to the last @: a secret that was not percent-encoded may contain any character.
USER_INFO = re.compile(r"^(/*)(?:[^/@:]*:.*@|[^/@]*@)", re.DOTALL)
HOST = re.compile(r"(?:[^\s:%\[\]\\]*|\[[0-9A-Fa-f:.]+\])(?::\d*)?")
HIDDEN = "..."
EXPECTED = "expected one such as s3://bucket/prefix or gs://bucket/prefix"
IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+[^\s'\"<>|]*")


class UrlError(OSError):
    """A URL that cannot be used. Not a ValueError: with those, Typer prints what was typed."""


def is_url(name: str | Path) -> bool:
    """Whether a folder's name is a URL, or keys that were meant for one.

    >>> is_url("s3://bucket/set"), is_url(Path("S3://bucket/set")), is_url("data/shards")
    (True, True, False)
    >>> is_url(Path("s3://")), is_url("key:secret@bucket/set")
    (True, True)
    """
    return bool(SCHEME.match(str(name)) or BARE_KEYS.match(str(name)))


def restore_url(name: str | Path) -> str:
    """The URL that a Path was made from, its scheme in small letters.

    >>> restore_url(Path("S3://bucket/Set")), restore_url(Path("file:///mnt/set"))
    ('s3://bucket/Set', 'file:///mnt/set')
    """
    found = SCHEME.match(str(name))
    if not found:
        return str(name).strip()
    scheme, slashes = found[1].lower(), found[2]
    is_path = scheme == "file" and slashes != "//"
    return f"{scheme}://{'/' if is_path else ''}{str(name)[found.end() :]}"


def show_url(name: str | Path) -> str:
    """A URL that is safe to print: without user, key, query and fragment.

    >>> show_url("s3://key:secret@bucket/set/?region=eu-west-1")
    's3://bucket/set'
    >>> show_url("s3://key:secret/with/slashes@bucket/set"), show_url("s3://key:secret/bucket")
    ('s3://bucket/set', 's3://...')
    """
    if not is_url(name):
        return str(name)
    scheme, mark, rest = restore_url(name).partition("://")
    if not SCHEME.match(str(name)):
        scheme, mark, rest = "", "", str(name)
    rest = re.split(r"[?#]", USER_INFO.sub(r"\1", rest))[0]
    if not HOST.fullmatch(rest.partition("/")[0]):
        rest = HIDDEN
    return f"{scheme}{mark}{rest}".rstrip("/")


def show_urls(text: str) -> str:
    """A text, such as a library's error, with every URL in it shown as `show_url` does.

    >>> show_urls("cannot get 'https://host/file?signature=5ad'; see s3:/key:secret@bucket")
    "cannot get 'https://host/file?...'; see s3://bucket"
    """

    def show(found: re.Match[str]) -> str:
        url = found[0].rstrip(":;,.)")
        if SCHEME.fullmatch(url):  # Nothing is in it: a word for a kind of URLs.
            return found[0]
        end = "/" if url.endswith("/") else ""
        hidden = f"?{HIDDEN}" if "?" in url else ""
        return show_url(url) + (hidden or end) + found[0][len(url) :]

    return IN_TEXT.sub(show, text)


def check_url(url: str) -> None:
    """ValueError if a URL is malformed, in one line that shows no part of a key."""
    restored, shown = restore_url(url), show_url(url)
    scheme, _, rest = restored.partition("://")
    if not SCHEME.match(url):
        raise ValueError(f"{shown}: looks like a URL without its beginning; {EXPECTED}")
    user_info, at, after = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")
    if scheme == "file":
        if not rest.startswith("/") or BARE_KEYS.match(rest):
            raise ValueError(f"{shown}: a file URL names no machine; expected file:///folder")
        return
    if USER_INFO.match(rest) and (not at or " " in user_info or "@" in user_info):
        raise ValueError(
            f"{shown}: the key before the @ has characters that a URL cannot hold; write / as "
            "%2F and + as %2B, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        )
    if not after:
        raise ValueError(f"{shown}//: names no bucket; {EXPECTED}")
    if not HOST.fullmatch(after):
        raise ValueError(f"{shown}: is not a folder's URL; {EXPECTED}")


def read_place(name: str) -> Path:
    """An option that takes a folder or a URL, as typed; UrlError if it is a malformed URL."""
    try:
        if is_url(name):
            check_url(name)
    except ValueError as error:
        raise UrlError(str(error)) from None
    return Path(name)


def read_checkpoint(name: str) -> Path:
    """An option that takes a checkpoint, as typed: a path, or a model of the Hub.

    UrlError if it is another URL.
    """
    if is_hub_model(name) or not is_url(name):
        return Path(name)
    raise UrlError(
        f"{show_url(name)}: is a URL, and a checkpoint is a path on this machine, or hf://user/name"
    )


def is_hub_model(name: str | Path) -> bool:
    """Whether a checkpoint's name is that of a model of the Hub; a Path has lost one slash.

    >>> is_hub_model("hf://user/name"), is_hub_model(Path("hf://user/name")), is_hub_model("hf")
    (True, True, False)
    """
    return str(name).startswith("hf:/")


def refuse_url(name: str | Path, option: str = "") -> None:
    """ValueError if `name`, which must be local, is a URL; for a set, with the command to run."""
    if not is_url(name):
        return
    url = show_url(name)
    if option:
        raise ValueError(f"{url}: is a URL, and {option} takes a path on this machine")
    folder = quote(f"{name_folder(url)}/")
    raise ValueError(
        f"{url}: shards are read from the local disk; download them with: "
        f"velocity shards pull {quote(url)} {folder} and name {folder} instead"
    )


def name_folder(url: str) -> str:
    """The local folder that stands for a URL unless another is named: its last part."""
    last = show_url(url).rpartition("/")[2]
    return last if last not in ("", ".", "..", HIDDEN) and ":" not in last else "shards"
