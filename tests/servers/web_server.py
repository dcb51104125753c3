"""A web server on this machine that gives files, with the faults of the stand-in for the Hub.

with WebServer() as web:
    web.files["a.jsonl"] = b"..."
    web.fail("a.jsonl", Fault(cut_after=100))
    prepare(f"{web.url}/a.jsonl")
"""

import hashlib
from base64 import b64encode
from dataclasses import replace
from urllib.parse import unquote, urlsplit

from tests.servers.hub_server import Answer, HubServer, Request


class WebServer(HubServer):
    """The server, its files by their paths, and how it answers for them."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        # Headers that an answer has besides, or has not, if they are "".
        self.headers: dict[str, str] = {}
        # user:password, where a path needs one.
        self.logins: dict[str, str] = {}

    def answer(self, request: Request, url: str, form: dict[str, list[str]]) -> Answer:
        """A file, its ETag made of its content; 401 without the login, and 404."""
        del form
        path = unquote(urlsplit(url).path).lstrip("/")
        content = self.files.get(path)
        login = b64encode(self.logins.get(path, "").encode()).decode()
        if path in self.logins and request.headers.get("Authorization") != f"Basic {login}":
            return Answer(401)
        if content is None:
            return Answer(404)
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        headers = {"ETag": tag, "Content-Type": "application/octet-stream"} | self.headers
        answer = Answer(200, content)
        return replace(answer, headers=tuple((k, v) for k, v in headers.items() if v))

    def find(self, path: str) -> list[Request]:
        """The requests for a path."""
        return [asked for asked in self.requests if urlsplit(asked.path).path == f"/{path}"]
