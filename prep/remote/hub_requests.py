"""Requests to the Hub that outlast its faults, and errors that say what to do.

The libraries retry some requests and not others, print what they please, and wait forever on
a silent connection. Here each request is retried as a whole, and each retry is one line.
"""

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar

from prep.remote.retry import (
    INSTEAD,
    PASSING_STATUSES,
    FailedDownloadError,
    Fault,
    Retry,
    SourceError,
    keep_trying,
    read_wait,
    shorten,
)
from shards.screen.lines import Say
from shards.screen.url import show_url

Answer = TypeVar("Answer")
# A connection that sends nothing for this long is given up, if the library sets no limit.
MAX_SILENCE_SECONDS = 60.0


def ask(
    request: Callable[[], Answer], what: str, retry: Retry, report: Say, instead: str = INSTEAD
) -> Answer:
    """Return what `request` returns, calling it again after faults that may pass.

    `report` also gets what the libraries say meanwhile. SourceError when the tries are used up,
    which says what could be done `instead`.
    """
    _quiet_library()

    def listen() -> Answer:
        with _listening(report):
            return request()

    return keep_trying(listen, what, retry, report, diagnose, instead)


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
                if status < 500 and status not in PASSING_STATUSES:
                    return None
                return Fault(f"HTTP {status}", read_wait(link.response.headers))
            case FailedDownloadError():
                return Fault(str(link))
            case SourceError() | OfflineModeIsEnabled() | FileNotFoundError():
                return None
            case _ if _is_transport_error(link):
                return Fault(shorten(link))
            case OSError(errno=int()):
                return None  # of this machine: a full disk, a folder without permission
    # Without a known cause, this is how the library reports a lost connection.
    last = (LocalEntryNotFoundError, XetDownloadError)
    return Fault(shorten(error)) if isinstance(error, last) else None


@contextmanager
def explaining(
    repo: str, revision: str | None, file: str | None = None, kind: str = "dataset"
) -> Iterator[None]:
    """Turn the libraries' errors about a repository, or a file of it, into one line of advice.

    `kind` is "dataset" or "model", as the Hub has them at different places.
    """
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        message = explain(error, repo, revision, file, kind)
        if message is None:
            raise
        raise SourceError(message) from error


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
                instead = INSTEAD if kind == "dataset" else "name a local folder"
                return (
                    f"{repo}: the Hub cannot be asked while HF_HUB_OFFLINE is set; unset it, or "
                    f"{instead}"
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
