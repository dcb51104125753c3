"""Signals that end a run: it finishes the step, saves and exits; the next start resumes from there.

Until the first step is done there is nothing to save, and the process ends at once. So it does at
a second Ctrl-C. A thread takes the signals, as the main one may be deep in a kernel, a compilation
or a wait for other ranks; it also notices when torchrun is gone, which nobody would tell the rank.
"""

import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from types import FrameType

from train.ranks.ending import Ending

# Besides SIGTERM and Ctrl-C: a closed terminal, and what batch systems send before the end.
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
# torchrun hands on what the terminal has sent to all: within this time it is one Ctrl-C.
SAME_SECONDS = 0.5
# How often a rank looks whether its torchrun is still there.
WATCH_SECONDS = 1.0
CLOSED = 0  # No signal has this number.


class StopFlag:
    """Remembers the signal that asked the run to end; 0 = none did."""

    def __init__(self, ending: Ending | None = None) -> None:
        self.ending = ending or Ending()
        self.signal_number = 0
        # Whether the run has taken a step, which a stop would save.
        self.has_progress = False
        self.since = 0.0

    def take(self, number: int) -> None:
        """React to a signal: end the process at once, or leave it to the run."""
        if self.ending.has_begun:
            self.ending.hurry(number)
            return
        now = time.monotonic()
        if not self.has_progress:
            self.ending.stop_now(
                number, "stopped before the first step; the same command starts again"
            )
        if not self.signal_number:
            self.signal_number, self.since = number, now
        elif number == signal.SIGINT and now - self.since > SAME_SECONDS:
            self.ending.stop_now(
                number, "stopped at once; the same command resumes from the last checkpoint"
            )


@contextmanager
def listen_for_stop(ending: Ending | None = None) -> Iterator[StopFlag]:
    """Catch the signals that end a run; restores the handlers afterwards.

    SIGHUP and the others that nohup or a batch system set to be ignored stay ignored.
    """
    flag = StopFlag(ending)
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    always = {signal.SIGTERM, signal.SIGINT}
    numbers = [n for n in numbers if n in always or signal.getsignal(n) != signal.SIG_IGN]
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before_descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    before = [signal.signal(number, do_nothing) for number in numbers]
    watcher = Thread(target=watch, args=(flag, reading, set(numbers)), name="stop", daemon=True)
    watcher.start()
    try:
        yield flag
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_descriptor)
        writing.send(bytes([CLOSED]))
        watcher.join()
        reading.close()
        writing.close()


def do_nothing(_number: int, _frame: FrameType | None) -> None:
    """The handler in the main thread: Python has sent the signal's number to the other one."""


def watch(flag: StopFlag, reading: socket.socket, numbers: set[int]) -> None:
    """Take the signals as they come, until `listen_for_stop` ends."""
    torchrun = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    while True:
        ready, _, _ = select.select([reading], [], [], WATCH_SECONDS)
        received = reading.recv(256) if ready else b""
        if CLOSED in received:
            return
        for number in received:
            if number in numbers:
                flag.take(number)
        if torchrun and os.getppid() != torchrun:
            torchrun = None
            flag.take(signal.SIGTERM)
