"""Requests that outlast a server's faults: each is made again as a whole, with a line for it."""

import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count
from typing import NamedTuple, TypeVar

from shards.screen.lines import Say, say
from shards.screen.secrets import hide

Answer = TypeVar("Answer")
# The longest wait that a server may ask for; the Hub counts requests over five minutes.
MAX_ASKED_SECONDS = 900.0
# What can be done without a server.
INSTEAD = "prepare local files with --input"
# What a server answers, besides 5xx, to a request that may succeed later.
PASSING_STATUSES = {408, 425, 429}


class SourceError(ValueError):
    """What a server did not give, and what to do about it, in one line.

    Libraries put the URLs into their errors that they were sent on to, which are signed.
    """

    def __init__(self, message: str) -> None:
        super().__init__(hide(message))


class FailedDownloadError(Exception):
    """A download that broke off, or whose bytes are not those that the server has."""


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
# For what is asked before a run begins, while somebody waits for the answer.
BRIEF = Retry(tries=4)


class Fault(NamedTuple):
    """Why a request failed that may succeed later."""

    reason: str
    asked_seconds: float = 0.0  # how long the server asked to wait


Diagnose = Callable[[BaseException], Fault | None]


def warn(line: str) -> None:
    """Print a line for the user on stderr, beside the progress line."""
    say(f"velocity: {line}")


def keep_trying(
    request: Callable[[], Answer],
    what: str,
    retry: Retry,
    report: Say,
    diagnose: Diagnose,
    instead: str = INSTEAD,
) -> Answer:
    """Return what `request` returns, calling it again after faults that may pass.

    `what` begins the line that `report` gets about each new try. `diagnose` says whether an error
    may pass; others are raised. When the tries are used up, SourceError, which ends with what could
    be done `instead`.
    """
    for attempt in count(1):
        try:
            return request()
        except Exception as error:
            fault = diagnose(error)
            if fault is None:
                raise
            if attempt >= retry.tries:
                raise SourceError(
                    f"{what}: {fault.reason}, after {attempt} tries; check the network and run the "
                    f"same command again, or {instead}"
                ) from error
        delay = retry.choose_delay(attempt) + min(fault.asked_seconds, MAX_ASKED_SECONDS)
        report(f"{what}: {fault.reason}; try {attempt + 1} of {retry.tries} in {delay:.1f} s")
        retry.pause(delay)
    raise AssertionError("unreachable")


def shorten(error: BaseException) -> str:
    """An error's text in one line of no great length; its kind, if it has none."""
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
