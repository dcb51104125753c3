"""Requests to the Hub that outlast its faults, and errors that say what to do.

The libraries retry some requests and not others, print what they please, and wait forever on
a silent connection. Here each request is retried as a whole, and each retry is one line.
"""

import importlib
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from itertools import count
from typing import Any, NamedTuple, TypeVar

from shards.screen.lines import Say, say
from shards.screen.secrets import hide
from shards.screen.url import show_url

Answer = TypeVar("Answer")
# A connection that sends nothing for this long is given up, if the library sets no limit.
MAX_SILENCE_SECONDS = 60.0
# The longest wait that a server may ask for; the Hub counts requests over five minutes.
MAX_ASKED_SECONDS = 900.0

_PASSING_STATUSES = {408, 425, 429}


class HubError(ValueError):
    """What the Hub did not give, and what to do about it, in one line.

    Libraries put the URLs into their errors that they were sent on to, which are signed.
    """

    def __init__(self, message: str) -> None:
        super().__init__(hide(message))


class FailedDownloadError(Exception):
    """A download that broke off, or whose bytes are not those that the Hub has."""


@dataclass(frozen=True)
class Retry:
    """How often a request is made, and how long to wait in between: twice as long each time."""

    tries: int = 8
    first_delay_seconds: float = 1.0
    max_delay_seconds: float = 60.0
    # How to wait; a thread that may have to end meanwhile brings its own function.
    pause: Callable[[float], None] = field(default=time.sleep, compare=False)

    def choose_delay(self, attempt: int) -> float:
        """Return the seconds to wait after failure number `attempt`, drawn at random below a cap.

        The draw keeps workers that were refused together from coming back together.
        """
        cap = min(self.first_delay_seconds * 2.0 ** (attempt - 1), self.max_delay_seconds)
        return cap * random.uniform(0.5, 1)


PATIENT = Retry()


class Fault(NamedTuple):
    """Why a request failed that may succeed later."""

    reason: str
    asked_seconds: float = 0.0  # how long the server asked to wait


def warn(line: str) -> None:
    """Print a line for the user on stderr, beside the progress line."""
    say(f"velocity: {line}")


def ask(request: Callable[[], Answer], what: str, retry: Retry, report: Say) -> Answer:
    """Return what `request` returns, calling it again after faults that may pass.

    `what` begins the line that `report` gets about each new try. Other errors pass through; when
    the tries are used up, HubError.
    """
    _quiet_library()
    for attempt in count(1):
        try:
            with _listening(report):
                return request()
        except Exception as error:
            fault = diagnose(error)
            if fault is None:
                raise
            if attempt >= retry.tries:
                raise HubError(
                    f"{what}: {fault.reason}, after {attempt} tries; check the network and run the "
                    "same command again, or prepare local files with --input"
                ) from error
        delay = retry.choose_delay(attempt) + min(fault.asked_seconds, MAX_ASKED_SECONDS)
        report(f"{what}: {fault.reason}; try {attempt + 1} of {retry.tries} in {delay:.1f} s")
        retry.pause(delay)
    raise AssertionError("unreachable")


def diagnose(error: BaseException) -> Fault | None:
    """The fault, if an error may pass with time, judging by it or by what caused it; else None."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        XetDownloadError,
    )

    for link in unfold(error):
        match link:
            case LocalEntryNotFoundError():
                continue  # what caused it tells more
            case HfHubHTTPError():
                status = link.response.status_code
                if status < 500 and status not in _PASSING_STATUSES:
                    return None
                return Fault(f"HTTP {status}", read_wait(link.response.headers))
            case FailedDownloadError():
                return Fault(str(link))
            case HubError() | OfflineModeIsEnabled() | FileNotFoundError():
                return None
            case _ if _is_transport_error(link):
                return Fault(_in_one_line(link))
            case OSError(errno=int()):
                return None  # of this machine: a full disk, a folder without permission
    # Without a known cause, this is how the library reports a lost connection.
    last = (LocalEntryNotFoundError, XetDownloadError)
    return Fault(_in_one_line(error)) if isinstance(error, last) else None


@contextmanager
def explaining(
    repo: str, revision: str | None, file: str | None = None, kind: str = "dataset"
) -> Iterator[None]:
    """Turn the libraries' errors about a repository, or a file of it, into one line of advice.

    `kind` is "dataset" or "model", as the Hub has them at different places.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        message = explain(error, repo, revision, file, kind)
        if message is None:
            raise
        raise HubError(message) from error


def explain(
    error: Exception,
    repo: str,
    revision: str | None,
    file: str | None = None,
    kind: str = "dataset",
) -> str | None:
    """Say in one line why the Hub did not give what was asked for; None for other errors."""
    from huggingface_hub import constants, errors

    endpoint = show_url(constants.ENDPOINT)
    url = f"{endpoint}/datasets/{repo}" if kind == "dataset" else f"{endpoint}/{repo}"
    for link in unfold(error):
        match link:
            case errors.GatedRepoError():
                return (
                    f"{repo}: is gated; accept its terms at {url}, then log in with "
                    "`hf auth login` or set HF_TOKEN"
                )
            case errors.RepositoryNotFoundError():
                return (
                    f"{repo}: no such {kind} at {endpoint}, or it is private; check the "
                    "name, or log in with `hf auth login`"
                )
            case errors.RevisionNotFoundError():
                return f"{repo}: no revision {revision!r}; see {url}/commits/main"
            case errors.RemoteEntryNotFoundError():
                return (
                    f"{repo}: {file or 'a file'} is gone from commit {revision}; the {kind}'s "
                    "history was rewritten: start over with another --out"
                )
            case errors.HFValidationError():
                return f"{repo}: is not the name of a {kind}; expected one such as owner/name"
            case errors.OfflineModeIsEnabled():
                return (
                    f"{repo}: the Hub cannot be asked while HF_HUB_OFFLINE is set; unset it, or "
                    "prepare local files with --input"
                )
            case errors.HfHubHTTPError() if file and link.response.status_code in (404, 410):
                # Without the Hub's own error header: a mirror, or a proxy.
                return (
                    f"{repo}: {file} is not at {constants.ENDPOINT} (HTTP "
                    f"{link.response.status_code}); commit {revision} no longer has it, or this "
                    "mirror lacks it: try the same command with another HF_ENDPOINT, or start over "
                    "with another --out"
                )
            case errors.HfHubHTTPError():
                refused = f"refused {file}" if file else "refused"
                return (
                    f"{repo}: the Hub {refused} with HTTP {link.response.status_code} "
                    f"({link.server_message or 'no reason given'}); see {url}, and check your "
                    "token with `hf auth whoami`"
                )
    return None


def unfold(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, then what caused it, and so on."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _is_transport_error(error: BaseException) -> bool:
    """Tell whether a connection failed: refused, reset, cut, silent, or a body that is short."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return True
    # The HTTP library of huggingface_hub differs between its releases (httpx, httpx2).
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def _in_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."


def read_wait(headers: Mapping[str, str]) -> float:
    """Read how many seconds a response asks to wait, from Retry-After or the Hub's RateLimit."""
    value = headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        pass
    limit = re.search(r"r=0;t=(\d+)", headers.get("RateLimit", "").replace(" ", ""))
    return float(limit[1]) if limit else 0.0


_listener: ContextVar[Say | None] = ContextVar("_listener", default=None)


@contextmanager
def _listening(report: Say) -> Iterator[None]:
    """Send what the libraries log to `report`."""
    token = _listener.set(report)
    try:
        yield
    finally:
        _listener.reset(token)


class _ToListener(logging.Handler):
    """Hands the libraries' warnings (above all of their own retries) to whoever is listening."""

    def emit(self, record: logging.LogRecord) -> None:
        report = _listener.get()
        if report is not None:
            report(" ".join(record.getMessage().split()))


def forward_logs(library: str) -> None:
    """Send a library's warnings to whoever is listening, and nowhere else."""
    importlib.import_module(f"{library}.utils.logging")  # adds the library's own handler
    logger = logging.getLogger(library)
    logger.handlers[:] = [_ToListener()]
    logger.propagate = False


@cache
def _quiet_library() -> None:
    """Keep huggingface_hub from printing, and from waiting forever on a silent connection."""
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    forward_logs("huggingface_hub")
    client = huggingface_hub.get_session()
    hooks = {"request": [*client.event_hooks["request"], _limit_silence]}
    make_client: Callable[..., Any] = type(client)
    huggingface_hub.set_client_factory(
        lambda: make_client(event_hooks=hooks, follow_redirects=True, timeout=None)
    )


def _limit_silence(request: Any) -> None:
    """Set the timeouts that a request lacks; listings come without any."""
    limits = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        phase: MAX_SILENCE_SECONDS if limits.get(phase) is None else limits[phase]
        for phase in ("connect", "read", "write", "pool")
    }
