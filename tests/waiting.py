"""Waiting for what another thread or process does soon."""

import time
from collections.abc import Callable


def wait_until(is_so: Callable[[], object], seconds: float = 200) -> None:
    """Look again and again; AssertionError if it does not happen."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
