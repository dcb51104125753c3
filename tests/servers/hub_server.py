"""A stand-in for the Hugging Face Hub on this machine: enough of its API for prep, and its faults.

with HubServer() as hub:
    commit = hub.commit("owner/name", {"README.md": b"...", "data/train-0.parquet": b"..."})
    hub.fail("data/train-0.parquet", Fault(status=503), times=2)
    run(..., env={**os.environ, **hub.environment(tmp_path)})
    hub.requests   # what was asked
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

# Files from this size on are kept as in git-LFS: known by the sha256 of their content.
LFS_BYTES = 1024
# How long a connection that stalls is kept open.
STALL_SECONDS = 30


@dataclass(frozen=True)
class Fault:
    """What goes wrong with an answer; several at once are possible."""

    status: int | None = None  # answer with this status and no content
    headers: tuple[tuple[str, str], ...] = ()  # beside it, such as ("Retry-After", "1")
    cut_after: int | None = None  # close the connection after so many bytes of the content
    stall_after: int | None = None  # or send no more after so many, and keep it open
    flip_byte: int | None = None  # change this byte of the content


@dataclass
class PlannedFault:
    """A fault that is due for the next requests that match."""

    method: str | None
    path: str
    fault: Fault
    times: int


@dataclass(frozen=True)
class Request:
    """A request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Repo:
    """A dataset: its commits, its branches, and whether a token is needed to read files."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def find(self, revision: str) -> str | None:
        """The commit that a revision names."""
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None


class HubServer:
    """The server, its datasets, the faults that are due and the requests that came."""

    def __init__(self, page_size: int = 1000) -> None:
        self.page_size = page_size
        self.repos: dict[str, Repo] = {}
        self.faults: list[PlannedFault] = []
        self.requests: list[Request] = []
        # Called with each request before it is answered.
        self.watch: Callable[[Request], None] = lambda request: None
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(self))
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def __enter__(self) -> "HubServer":
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closing.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs in its environment to meet this Hub, and no files of the user."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DOWNLOAD_TIMEOUT": "3"}

    def commit(self, name: str, files: dict[str, bytes], gated: bool = False) -> str:
        """Make these files the newest commit of a dataset; returns the commit's sha.

        Of a model, if the name is models/owner/name.
        """
        repo = self.repos.setdefault(name, Repo())
        repo.gated = gated
        seed = f"{name} {len(repo.commits)} {sorted(files)}"
        commit = hashlib.sha1(seed.encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.branches["main"] = commit
        return commit

    def fail(self, path: str, fault: Fault, times: int = 1, method: str | None = None) -> None:
        """Let the next requests whose url contains `path` go wrong."""
        self.faults.append(PlannedFault(method, path, fault, times))

    def take_fault(self, method: str, path: str) -> Fault:
        """The fault that is due for a request; one without any content if none is."""
        with self.lock:
            for planned in self.faults:
                if planned.times and planned.path in path and planned.method in (None, method):
                    planned.times -= 1
                    return planned.fault
        return Fault()

    def answer(self, request: Request, url: str, form: dict[str, list[str]]) -> "Answer":
        """The answer to a request for `url`; `form` is what was posted."""
        is_authorized = "authorization" in map(str.lower, request.headers)
        return Api(self, is_authorized).answer(url, form)

    def count(self, path: str, method: str = "GET") -> int:
        """How many requests came for urls that contain `path`."""
        return sum(request.method == method and path in request.path for request in self.requests)


@dataclass(frozen=True)
class Answer:
    """What a request gets."""

    status: int
    content: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def answer_json(value: Any, *headers: tuple[str, str]) -> Answer:
    return Answer(200, json.dumps(value).encode(), (("Content-Type", "application/json"), *headers))


def refuse(status: int, code: str) -> Answer:
    content = json.dumps({"error": code}).encode()
    return Answer(status, content, (("X-Error-Code", code), ("X-Error-Message", code)))


def describe(path: str, content: bytes) -> dict[str, Any]:
    """A file as the API tells it."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": find_etag(content)}
    if len(content) >= LFS_BYTES:
        entry["oid"] = hashlib.sha1(b"pointer to " + content).hexdigest()
        entry["lfs"] = {"oid": find_etag(content), "size": len(content), "pointerSize": 134}
    return entry


def describe_folder(path: str) -> dict[str, Any]:
    """A folder as the API tells it."""
    oid = hashlib.sha1(path.encode()).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


def find_etag(content: bytes) -> str:
    """The sha256 of a large file, the git blob id of a small one."""
    if len(content) >= LFS_BYTES:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Api:
    """The answers, fault for fault aside."""

    def __init__(self, hub: HubServer, authorized: bool) -> None:
        self.hub = hub
        self.authorized = authorized

    def answer(self, url: str, form: dict[str, list[str]]) -> Answer:
        """The answer to a request for `url`; `form` is what was posted."""
        parts = urlsplit(url)
        path, query = unquote(parts.path), parse_qs(parts.query)
        match = re.fullmatch(
            r"/api/(?:datasets|(models))/([^/]+/[^/]+)"
            r"(?:/(revision|tree|paths-info|auth-check)/?(.*))?",
            path,
        ) or re.fullmatch(r"/(?:datasets|())/?([^/]+/[^/]+)/(resolve)/(.*)", path)
        repo = None
        if match:
            # A model is at the Hub's root, its name in its paths as it is.
            kind = "datasets" if match[1] is None else "models"
            repo = self.hub.repos.get(match[2] if kind == "datasets" else f"models/{match[2]}")
        if match is None or repo is None:
            return refuse(404, "RepoNotFound")
        action, rest = match[3], match[4] or "main"
        if action == "auth-check":
            return self.check_access(repo) or answer_json({})
        revision, _, inner = rest.partition("/")
        if rest.startswith("refs/"):
            revision, inner = "/".join(rest.split("/")[:3]), "/".join(rest.split("/")[3:])
        commit = repo.find(revision)
        if commit is None:
            return refuse(404, "RevisionNotFound")
        files = repo.commits[commit]
        if action == "resolve":
            return self.check_access(repo) or self.give_file(files, inner, commit)
        if action == "tree":
            return self.list_tree(files, inner, query, urlsplit(url).path)
        if action == "paths-info":
            found = [describe(p, files[p]) for p in form["paths"] if p in files]
            folders = [p for p in form["paths"] if any(f.startswith(f"{p}/") for f in files)]
            return answer_json(found + [describe_folder(path) for path in folders])
        siblings = [{"rfilename": name} for name in sorted(files)]
        gated = "auto" if repo.gated else False
        return answer_json({"id": match[2], "sha": commit, "siblings": siblings, "gated": gated})

    def check_access(self, repo: Repo) -> Answer | None:
        """The refusal, where the dataset is gated and no token came."""
        return refuse(401, "GatedRepo") if repo.gated and not self.authorized else None

    def give_file(self, files: dict[str, bytes], path: str, commit: str) -> Answer:
        """A file's content, with the headers that the Hub sends along."""
        content = files.get(path)
        headers = (("X-Repo-Commit", commit),)
        if content is None:
            missing = refuse(404, "EntryNotFound")
            return Answer(404, missing.content, missing.headers + headers)
        return Answer(200, content, (*headers, ("ETag", f'"{find_etag(content)}"')))

    def list_tree(
        self, files: dict[str, bytes], folder: str, query: dict[str, list[str]], url: str
    ) -> Answer:
        """A page of what lies in a folder, with the link to the next page."""
        prefix = folder + "/" if folder else ""
        inside = {path: content for path, content in files.items() if path.startswith(prefix)}
        if not inside:
            return refuse(404, "EntryNotFound")
        entries: dict[str, dict[str, Any]] = {}
        for path, content in sorted(inside.items()):
            names = path.removeprefix(prefix).split("/")
            for depth in range(1, len(names)):
                path_above = prefix + "/".join(names[:depth])
                entries.setdefault(path_above, describe_folder(path_above))
            entries[path] = describe(path, content)
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        listed = [
            entry
            for path, entry in entries.items()
            if recursive or "/" not in path.removeprefix(prefix)
        ]
        start = int(query.get("cursor", ["0"])[0])
        stop = start + self.hub.page_size
        if stop >= len(listed):
            return answer_json(listed[start:])
        following = f"{self.hub.url}{url}?recursive={recursive}&expand=False&cursor={stop}"
        return answer_json(listed[start:stop], ("Link", f'<{following}>; rel="next"'))


def make_handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    """The class that the standard library's server makes an object of for each connection."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            del format, args

        def do_GET(self) -> None:
            self.handle_request(b"")

        def do_HEAD(self) -> None:
            self.handle_request(b"")

        def do_POST(self) -> None:
            self.handle_request(self.read_body())

        def do_PUT(self) -> None:
            self.handle_request(self.read_body())

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def handle_request(self, body: bytes) -> None:
            is_form = "urlencoded" in self.headers.get("Content-Type", "")
            form = parse_qs(body.decode()) if is_form else {}
            request = Request(self.command, unquote(self.path), dict(self.headers), body)
            hub.requests.append(request)
            hub.watch(request)
            fault = hub.take_fault(self.command, unquote(self.path))
            if fault.status:
                answer = Answer(fault.status, headers=fault.headers)
            else:
                answer = hub.answer(request, self.path, form)
            self.send(answer, fault)

        def send(self, answer: Answer, fault: Fault) -> None:
            status, content, headers = answer.status, answer.content, dict(answer.headers)
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            is_same = self.headers.get("If-Range") in (None, *headers.values())
            if match and is_same and status == 200:
                start, size = int(match[1]), len(content)
                content = content[start : int(match[2]) + 1 if match[2] else None]
                status = 206
                headers["Content-Range"] = f"bytes {start}-{start + len(content) - 1}/{size}"
            if fault.flip_byte is not None and content:
                changed = bytearray(content)
                changed[fault.flip_byte % len(content)] ^= 1
                content = bytes(changed)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Connection" not in headers:  # Else its end is where the connection is closed.
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                with suppress(ConnectionError):  # Who asked may be gone.
                    self.send_content(content, fault)

        def send_content(self, content: bytes, fault: Fault) -> None:
            limits = [n for n in (fault.cut_after, fault.stall_after) if n is not None]
            self.wfile.write(content[: min(limits, default=None)])
            self.wfile.flush()
            if fault.stall_after is not None:
                hub.closing.wait(STALL_SECONDS)
            if limits:
                self.close_connection = True

    return Handler


@contextmanager
def changed_environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def wait_little() -> None:
    """Make this process wait between tries no longer than a test can sit through."""
    from prep.remote.retry import BRIEF, PATIENT

    for retry in (BRIEF, PATIENT):
        object.__setattr__(retry, "first_delay_seconds", 0.01)
        object.__setattr__(retry, "max_delay_seconds", 0.05)
