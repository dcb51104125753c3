"""Processes that come to a point and no further, so that whoever kills them there is never late."""

import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any


def hold_after(module: str, name: str, num_calls: int) -> Callable[[], None]:
    """A setup for Forked: the module's function is called so often, and its next call never ends.

    A signal ends it: it waits as a sleeping process does.
    """
    return partial(hold, module, name, num_calls)


def hold(module: str, name: str, num_calls: int) -> None:
    """Have this process do so."""
    owner = import_module(module)
    call, left = getattr(owner, name), [None] * num_calls

    def call_or_wait(*arguments: Any, **options: Any) -> Any:
        if not left:
            time.sleep(100_000)
        left.pop()
        return call(*arguments, **options)

    setattr(owner, name, call_or_wait)
