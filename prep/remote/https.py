"""Files on web servers: looked at, pinned by what the server calls their version, and fetched.

    https://host/file.jsonl.zst        a file; a web server lists no folders

A request is answered as a whole, or refused, or continued where a connection broke off; its
headers say each time whether the file is still the one that was pinned.
"""

import base64
import binascii
import hashlib
import http.client
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib import request as web
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit

from prep.remote.pinned import RemoteFile, name_url
from prep.remote.retry import (
    PASSING_STATUSES,
    FailedDownloadError,
    Fault,
    Retry,
    SourceError,
    keep_trying,
    read_wait,
    shorten,
)
from prep.request import KINDS
from prep.sources.walk import has_suffix
from shards.screen.lines import Say

MAX_SILENCE_SECONDS = 60.0
CHUNK_BYTES = 1 << 20
CHANGED = (
    "is no longer the file that was listed ({was}; now {now}); put that one back, or start over "
    "with another --out"
)


def find_file(url: str, place: int, report: Say, retry: Retry) -> RemoteFile:
    """Look at a file at a URL: its size, and what the server calls this version of it.

    Raises SourceError with one line for what is no file that is read here, or cannot be had.
    """
    name = name_url(url)

    def look() -> RemoteFile:
        with open_url(url, name) as response:
            size, pin = describe(response.headers)
            if size is None:
                raise SourceError(
                    f"{name}: the server does not say how large the file is; download it and "
                    "prepare the local file with --input"
                )
            return RemoteFile(name, size, pin=pin, place=place, url=url)

    return keep_trying(look, name, retry, report, diagnose)


def fetch(file: RemoteFile, private: Path, report: Say, retry: Retry) -> Path:
    """Fetch a file into an empty folder of its own, going on where a connection broke off."""
    private.mkdir()
    target = private / "file"
    target.touch()
    keep_trying(lambda: fetch_rest(file, target), file.name, retry, report, diagnose)
    return target


def fetch_rest(file: RemoteFile, target: Path) -> None:
    """Fetch what is still missing of a file; from its beginning, if the server cannot go on."""
    begun = target.stat().st_size
    wanted = {}
    if begun > 0 and file.pin and not file.pin.startswith("W/"):
        wanted = {"Range": f"bytes={begun}-", "If-Range": file.pin}
    with open_url(file.url, file.name, wanted) as response:
        size, pin = describe(response.headers)
        if (size, pin) != (file.num_bytes, file.pin):
            was, now = tell(file.num_bytes, file.pin), tell(size, pin)
            raise SourceError(f"{file.name}: {CHANGED.format(was=was, now=now)}")
        part = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        start = int(part[1]) if part else 0
        if start not in (0, begun):
            raise FailedDownloadError("came with another part than was asked for")
        with open(target, "ab" if start else "wb") as out:
            while out.tell() <= file.num_bytes and (chunk := response.read(CHUNK_BYTES)):
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
            arrived = out.tell()
        stated = find_hash(response.headers)
    if arrived < file.num_bytes:
        raise FailedDownloadError(f"broke off after {arrived:,} of {file.num_bytes:,} bytes")
    if arrived > file.num_bytes or (stated and hash_bytes(target, stated[0]) != stated[1]):
        os.truncate(target, 0)
        raise FailedDownloadError("came with other bytes than the server says")


def check_place(url: str, name: str) -> None:
    """SourceError for a URL that is not a file's, before the server is asked."""
    try:
        parts = urlsplit(url.strip())
    except ValueError as error:
        raise SourceError(f"{name}: is not a URL that can be read ({error})") from None
    path = unquote(parts.path)
    expected = f"expected the URL of a file ending in {KINDS}, before any ?"
    if not parts.hostname:
        raise SourceError(f"{name}: names no host; {expected}")
    if urlsplit(name).netloc != parts.netloc.rpartition("@")[2]:
        raise SourceError(
            f"{name}: is not a URL that can be read; write @ as %40, and / in a password as %2F"
        )
    try:
        parts.port  # noqa: B018 - it is parsed when it is asked for
    except ValueError as error:
        raise SourceError(f"{name}: is not a URL that can be read ({error})") from None
    if re.search(r"[*\[]", path):
        raise SourceError(f"{name}: a web server lists no files; give the URL of each")
    if not has_suffix(PurePosixPath(path or "/")):
        raise SourceError(f"{name}: {expected}")


class _Redirects(web.HTTPRedirectHandler):
    """Follows where a file has moved: never from https to http, and with no password elsewhere."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> web.Request | None:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if after.scheme not in ("https", before.scheme):
            raise HTTPError(req.full_url, code, "redirected to what is not https", headers, fp)
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following and (before.scheme, before.netloc) != (after.scheme, after.netloc):
            following.remove_header("Authorization")
        return following


def open_url(url: str, name: str, wanted: Mapping[str, str] | None = None) -> Any:
    """The response to a GET request, its content unread; HTTPError if it is none of success."""
    parts = urlsplit(url.strip())
    info, _, host = parts.netloc.rpartition("@")
    headers = {"User-Agent": "velocity", "Accept-Encoding": "identity", **(wanted or {})}
    if info:
        login = base64.b64encode(unquote(info).encode()).decode()
        headers["Authorization"] = f"Basic {login}"
    place = parts._replace(netloc=host, path=quote(parts.path, safe="/%:@!$&'()*+,;=~"))
    opener = web.OpenerDirector()
    for handler in (
        web.ProxyHandler(),
        web.HTTPHandler(),
        web.HTTPSHandler(),
        web.HTTPDefaultErrorHandler(),
        _Redirects(),
        web.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    request = web.Request(place._replace(fragment="").geturl(), headers=headers)
    try:
        response = opener.open(request, timeout=MAX_SILENCE_SECONDS)
    except HTTPError as error:
        error.close()
        if diagnose(error):
            raise
        raise SourceError(f"{name}: {explain_status(error)}") from None
    except (http.client.InvalidURL, UnicodeError):  # Their texts hold the query.
        raise SourceError(f"{name}: is not a URL that can be read; write a space as %20") from None
    except URLError as error:
        if diagnose(error):
            raise
        raise SourceError(f"{name}: cannot be had ({shorten(error)})") from None
    refuse_page(response, name)
    return response


def refuse_page(response: Any, name: str) -> None:
    """SourceError for what is not the file itself: a page about it, or a packed copy of it."""
    kind = response.headers.get_content_type()
    packed = response.headers.get("Content-Encoding", "identity")
    if kind == "text/html":
        response.close()
        raise SourceError(
            f"{name}: is a web page, not the file; give the URL that a browser downloads it from"
        )
    # S3 says aws-chunked of files that were sent to it in chunks; they come as they are.
    if packed not in ("identity", "aws-chunked", "") and not name.lower().endswith(
        (".gz", ".zst", ".zstd", ".bz2", ".xz")
    ):
        response.close()
        raise SourceError(
            f"{name}: the server sends it packed ({packed}) although it was asked not to; download "
            "it and prepare the local file with --input"
        )


def explain_status(error: HTTPError) -> str:
    """What a server's refusal means, and what to do."""
    if error.code in (404, 410):
        return f"there is no such file (HTTP {error.code}); check the URL"
    if error.code in (401, 403):
        return (
            f"access is denied (HTTP {error.code}); check user and password in the URL, or if it "
            "is a signed one, take a new one: it may have expired"
        )
    if 300 <= error.code < 400:
        return f"is redirected to what is not followed (HTTP {error.code}); give the final URL"
    return f"the server refused it (HTTP {error.code})"


def describe(headers: Mapping[str, str]) -> tuple[int | None, str]:
    """A file's size and version, as the headers of a response have them."""
    whole = re.fullmatch(r"bytes \d+-\d+/(\d+)", headers.get("Content-Range", ""))
    size = whole[1] if whole else headers.get("Content-Length", "")
    pin = headers.get("ETag") or headers.get("Last-Modified") or ""
    return int(size) if size.isdigit() else None, pin


def tell(num_bytes: int | None, pin: str) -> str:
    """A size and a version, for people."""
    size = "of unknown size" if num_bytes is None else f"{num_bytes:,} bytes"
    return f"{size}, {pin}" if pin else size


def find_hash(headers: Mapping[str, str]) -> tuple[str, bytes] | None:
    """The hash of the whole file that a response states, if any: its kind and its bytes.

    >>> find_hash({"x-goog-hash": "crc32c=AAAAAA==,md5=1B2M2Y8AsgTpgAmY7PhCfg=="})[0]
    'md5'
    """
    stated = [("sha256", r"sha-256=:([A-Za-z0-9+/=]+):", "Repr-Digest")]
    stated += [("md5", r"\bmd5=([A-Za-z0-9+/=]+)", "x-goog-hash")]
    for kind, form, header in stated:
        found = re.search(form, headers.get(header, ""))
        try:
            if found:
                return kind, base64.b64decode(found[1], validate=True)
        except binascii.Error:
            continue
    return None


def hash_bytes(path: Path, kind: str) -> bytes:
    """The hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).digest()


def diagnose(error: BaseException) -> Fault | None:
    """The fault, if an error may pass with time; else None."""
    match error:
        case FailedDownloadError():
            return Fault(str(error))
        case HTTPError():
            if error.code < 500 and error.code not in PASSING_STATUSES:
                return None
            headers: Any = error.headers
            return Fault(f"HTTP {error.code}", read_wait(headers))
        case URLError() if isinstance(error.reason, ssl.SSLCertVerificationError):
            return None
        case URLError():  # The connection was not made: no such host, refused, no network.
            reason = error.reason
            return Fault(shorten(reason)) if isinstance(reason, OSError) else None
        case http.client.InvalidURL():
            return None
        case http.client.HTTPException() | ConnectionError() | TimeoutError() | ssl.SSLError():
            return Fault(shorten(error))
    return None
