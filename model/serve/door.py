"""Who may come in: checks every request before it is read, and counts and logs it after.

A page of a stranger, open in a browser on this machine, can send requests to a server on it. It
must not use it: the Origin that browsers tell must be the server's own, and so must the name by
which it was asked for, or a name that resolves to this machine only now would make the stranger's
page the server's own (DNS rebinding).
"""

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Iterable
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.serve.metrics import Metrics
from model.serve.wire.errors import ApiError
from model.serve.wire.fields import show

logger = logging.getLogger("velocity")

LOCAL_NAMES = ("localhost",)
# How long an answer may take beside its texts: to be read by a slow client, above all.
ANSWER_SECONDS = 60
# What a client that has gone is said to have been answered in logs, as nginx does.
GONE = 499
PORT = re.compile(r":\d*$")


class Door:
    """The application behind its checks."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        api_key: str | None,
        hosts: Iterable[str],
        origins: Iterable[str],
        paths: Iterable[str],
        max_seconds: float,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.key = api_key and f"Bearer {api_key}".encode()
        self.hosts = {*LOCAL_NAMES, *(host.lower() for host in hosts)}
        self.origins = frozenset(origins)
        self.paths = frozenset(paths)
        self.seconds = max_seconds + ANSWER_SECONDS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer why not."""
        if scope["type"] != "http":
            return
        started, status = time.monotonic(), GONE

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                self.check(scope["path"], Headers(scope=scope))
                async with asyncio.timeout(self.seconds):
                    await self.app(scope, receive, note)
            except ApiError as error:
                await error.answer()(scope, receive, note)
        except ClientDisconnect:
            pass
        except TimeoutError:
            if status == GONE:  # Nothing of an answer has been sent.
                await ApiError(503, "the answer took too long", "timeout").answer()(
                    scope, receive, note
                )
        except Exception as error:  # It was answered, if an answer had not begun.
            name = type(error).__name__
            logger.error("velocity: unexpected %s: %s; please report it", name, error)
        finally:
            self.count(scope, status, time.monotonic() - started)

    def check(self, path: str, headers: Headers) -> None:
        """Raise ApiError for a request that may not come in."""
        host = headers.get("host", "").lower()
        name = PORT.sub("", host)
        if name not in self.hosts and not is_address(name):
            raise ApiError(
                403,
                f"this server is not known as {show(name)}; whoever started it may add it with "
                "--allow-host",
                "host_not_allowed",
            )
        origin = headers.get("origin", "").lower()
        if origin and origin not in self.origins and origin.partition("://")[2] != host:
            raise ApiError(
                403,
                f"pages of {show(origin)} may not use this server; whoever started it may let "
                "them with --allow-origin",
                "origin_not_allowed",
            )
        if self.key and needs_key(path):
            given = headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self.key):
                raise ApiError(
                    401,
                    "the API key is missing or wrong; expected the header Authorization: Bearer "
                    "KEY",
                    "invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request, and log it: never what was in it, nor the query of its URL."""
        path = scope["path"] if scope["path"] in self.paths else "other"
        self.metrics.requests.labels(path, str(status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        client = (scope.get("client") or ("-",))[0]
        shown = scope["path"][:100]
        logger.info("%s %s %s %d %.2f s", client, scope["method"], shown, status, seconds)


def needs_key(path: str) -> bool:
    """Whether a path is the API's, or tells what the server does."""
    return path.startswith("/v1/") or path == "/metrics"


def is_address(name: str) -> bool:
    """Whether a host is an address, which nobody can make resolve to another.

    >>> is_address("192.168.1.7"), is_address("[::1]"), is_address("evil.example")
    (True, True, False)
    """
    try:
        ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
