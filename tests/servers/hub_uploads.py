"""A stand-in for the Hub that takes repositories: made, filled with large files, and committed."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from typing import Any

from tests.servers.hub_server import LFS_BYTES, Answer, HubServer, Request, answer_json, refuse

CREATE, VALIDATE = "/api/repos/create", "/api/validate-yaml"
PREUPLOAD = re.compile(r"/api/(model|dataset|space)s/([^/]+/[^/]+)/preupload/main")
BATCH = re.compile(r"/(?:spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")
STORED = "/stored/"
INFO = re.compile(r"/api/(model|dataset|space)s/([^/]+/[^/]+)")
COMMIT = re.compile(r"/api/(model|dataset|space)s/([^/]+/[^/]+)/commit/main")


class UploadHub(HubServer):
    """What was made, by kind and name, and what it holds; writes need this token."""

    token = "hf_secret_of_a_test"

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[tuple[str, str], dict[str, Any]] = {}
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.stored: dict[str, bytes] = {}

    def environment_of_a_writer(self) -> dict[str, str]:
        """What a process needs besides `environment`: a token, and no service for large files."""
        return {"HF_TOKEN": self.token, "HF_HUB_DISABLE_XET": "1"}

    def answer(self, request: Request, url: str, form: dict[str, list[str]]) -> Answer:
        """The answer to a request that may write."""
        path = request.path.partition("?")[0]
        if path.startswith(STORED):
            assert hashlib.sha256(request.body).hexdigest() == path.removeprefix(STORED)
            self.stored[path.removeprefix(STORED)] = request.body
            return Answer(200)
        headers = {name.lower(): value for name, value in request.headers.items()}
        if headers.get("authorization") != f"Bearer {self.token}":
            return refuse(401, "RepoNotFound")
        if path == CREATE:
            return self.create(json.loads(request.body))
        if match := INFO.fullmatch(path):
            found = self.made[match[1], match[2]]
            is_private = found.get("visibility") == "private"
            return answer_json({"id": match[2], "private": is_private, "siblings": []})
        if path == VALIDATE:
            return answer_json({"errors": [], "warnings": []})
        if PREUPLOAD.fullmatch(path):
            files = json.loads(request.body)["files"]
            return answer_json({"files": [choose_mode(entry) for entry in files]})
        if BATCH.fullmatch(path):
            objects = json.loads(request.body)["objects"]
            return answer_json({"objects": [*map(self.offer, objects)]})
        if match := COMMIT.fullmatch(path):
            return self.take(match[1], match[2], request.body)
        return super().answer(request, url, form)

    def create(self, wanted: dict[str, Any]) -> Answer:
        """Make a repository; one that is there already stays."""
        kind = wanted.get("type", "model")
        name = f"{wanted['organization']}/{wanted['name']}"
        is_new = (kind, name) not in self.made
        self.made.setdefault((kind, name), wanted)
        prefix = "" if kind == "model" else f"{kind}s/"
        told = answer_json({"url": f"{self.url}/{prefix}{name}", "name": name})
        return told if is_new else replace(told, status=409)

    def offer(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Where a large file is sent to."""
        upload = {"href": f"{self.url}{STORED}{entry['oid']}"}
        return entry | {"actions": {"upload": upload}, "authenticated": True}

    def take(self, kind: str, name: str, body: bytes) -> Answer:
        """A commit: lines of JSON, the first its message, each other a file."""
        held = self.files.setdefault((kind, name), {})
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                assert value["encoding"] == "base64"
                held[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                held[value["path"]] = self.stored[value["oid"]]
        oid = hashlib.sha1(body).hexdigest()
        url = f"{self.url}/{name}/commit/{oid}"
        return answer_json({"success": True, "commitOid": oid, "commitUrl": url})


def choose_mode(entry: dict[str, Any]) -> dict[str, Any]:
    """Whether a file is sent with the commit, or apart from it."""
    mode = "lfs" if entry["size"] >= LFS_BYTES else "regular"
    return {"path": entry["path"], "uploadMode": mode, "shouldIgnore": False}
