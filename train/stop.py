"""SIGTERM and Ctrl-C: finish the step, save and exit; the next start resumes from there."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopFlag:
    """Remembers the signal that asked the run to end; 0 = none did."""

    def __init__(self) -> None:
        self.signal_number = 0

    def __call__(self, signal_number: int, _frame: FrameType | None) -> None:
        """The signal handler. torchrun and the terminal may both send the same signal."""
        self.signal_number = signal_number


@contextmanager
def listen_for_stop() -> Iterator[StopFlag]:
    """Catch SIGTERM and SIGINT during a run; restores the handlers afterwards."""
    flag = StopFlag()
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, flag) for number in signals]
    try:
        yield flag
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
