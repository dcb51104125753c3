"""Exit codes of a run, and how one of its processes ends so that nothing starts it again in vain.

0 done; 78 ended by what the next start would meet again, such as a wrong setting; 128 + n stopped
by signal n; 1 everything else. docs/runs.md says what Slurm and Kubernetes can make of them.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from threading import Event
from typing import NoReturn

FAILED = 1
# EX_CONFIG of sysexits.h. torchrun restarts whatever fails, so it is stopped beside it.
DO_NOT_RESTART = 78
# How long a rank waits for the one that stops torchrun, and for torchrun to end it in turn.
TORCHRUN_SECONDS = 10.0

# Set when a signal came while the process was already ending.
released = Event()

# The torchrun that started this process; None = something else did.
TORCHRUN = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


def choose_exit_code(error: Exception) -> int:
    """The exit code for an error: mistakes (ValueError) would only be made again.

    >>> choose_exit_code(ValueError("wrong")), choose_exit_code(OSError("the disk is gone"))
    (78, 1)
    """
    return DO_NOT_RESTART if isinstance(error, ValueError) else FAILED


def would_restart() -> bool:
    """Whether torchrun would start this process again if it failed now."""
    allowed = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    done = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return TORCHRUN is not None and os.getppid() == TORCHRUN and done < allowed


def prevent_restart(code: int) -> None:
    """End the torchrun of this machine, if it would start the run again in spite of `code`.

    It looks at no exit code. Its first rank here sends it SIGTERM, after which it ends all others;
    these wait for that, as it would restart them if one of them ended first. If the first rank does
    nothing, because the mistake is another's alone, that one sends it.
    """
    if code != DO_NOT_RESTART or not would_restart():
        return
    assert TORCHRUN is not None
    if os.environ.get("LOCAL_RANK") != "0":
        deadline = time.monotonic() + TORCHRUN_SECONDS
        while os.getppid() == TORCHRUN and time.monotonic() < deadline and not released.is_set():
            time.sleep(0.1)
    if os.getppid() == TORCHRUN:
        with suppress(ProcessLookupError):
            os.kill(TORCHRUN, signal.SIGTERM)


def leave(code: int) -> NoReturn:
    """End the process now, from any thread, whatever the main one and other ranks are doing.

    Python's own end would wait for threads, and for communication with ranks that are gone.
    """
    prevent_restart(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
