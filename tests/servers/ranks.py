"""Runs of `-m train` in processes forked from one that has torch loaded, so that they start at once.

What ends such a process is real: a signal, SIGKILL, its own exit. torchrun itself is started only
where it is what a test is about (tests/runs.py).
"""

import os
import signal
import socket
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import mkstemp

FORKS = get_context("forkserver")
# What the command imports, and what torch imports for the first update.
FORKS.set_forkserver_preload(["train.__main__", "train.loop", "torch._dynamo"])


class RunProcess:
    """One rank, with what tests ask of a subprocess.Popen."""

    def __init__(self, overrides: Sequence[str], variables: dict[str, str] | None = None) -> None:
        handle, name = mkstemp()
        os.close(handle)
        self.log = Path(name)
        arguments = (list(overrides), name, variables or {})
        self.process: BaseProcess = FORKS.Process(target=run_rank, args=arguments)
        self.process.start()
        assert self.process.pid
        self.pid = self.process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        """The same."""
        return self.process.exitcode

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """Wait for its end; nothing, and what it wrote to standard error."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, "it did not end"
        errors = self.log.read_text()
        self.log.unlink()
        return "", errors

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it on the spot."""
        self.send_signal(signal.SIGKILL)


def run_rank(overrides: list[str], log: str, variables: dict[str, str]) -> None:
    """In the fork: the command, with its words and its standard error."""
    os.environ.update(variables)
    descriptor = os.open(log, os.O_WRONLY)
    os.dup2(descriptor, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.argv = ["train", *overrides]
    from train.__main__ import main

    main()


def run_ranks(num_ranks: int, overrides: Sequence[str]) -> None:
    """A run of several ranks on this machine, to its end."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    variables["WORLD_SIZE"] = str(num_ranks)
    ranks = [
        RunProcess(overrides, variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(num_ranks)
    ]
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * num_ranks, said
