"""`velocity` and `-m train` in processes forked from one that has all loaded: they start at once.

What ends such a process is real: a signal, SIGKILL, its own exit. Python and torchrun are started
only where they are what a test is about.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkstemp
from typing import Any

from tests.servers.ports import find_port

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["tests.servers.warm"])


class Forked:
    """A command in a process of its own, with what tests ask of a subprocess.Popen.

    `words` begin with `velocity` or `train`. The process leads a session; `setup`, a function of a
    module, is called in it first.
    """

    def __init__(
        self,
        words: Sequence[object],
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        setup: Callable[[], None] | None = None,
    ) -> None:
        self.words = [str(word) for word in words]
        self.files = [make_file(), make_file()]
        variables = dict(os.environ) | dict(environment or {})
        arguments = (self.words, self.files, str(cwd or Path.cwd()), variables, setup)
        self.process: Any = FORKS.Process(target=run_words, args=arguments)
        self.process.start()
        self.pid: int = self.process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        code: int | None = self.process.exitcode
        return code

    @property
    def returncode(self) -> int:
        """The exit code of a process that has ended."""
        code = self.poll()
        assert code is not None
        return code

    def wait(self, timeout: float = 200) -> int:
        """Wait for its end; subprocess.TimeoutExpired, and its end, if that takes too long."""
        self.process.join(timeout)
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.words, timeout)
        return self.returncode

    def communicate(self, timeout: float = 200) -> tuple[str, str]:
        """Wait for its end; what it wrote to standard output and error."""
        self.wait(timeout)
        out, errors = (path.read_text(errors="replace") for path in self.files)
        for path in self.files:
            path.unlink()
        return out, errors

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill_after(self, path: Path) -> None:
        """Kill it, and what it started, once there is a file at `path`."""
        deadline = time.monotonic() + 200
        while not path.exists():
            assert time.monotonic() < deadline
            assert self.poll() is None, self.communicate()
            time.sleep(0.001)
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def kill(self) -> None:
        """Kill it on the spot."""
        self.send_signal(signal.SIGKILL)


def run_forked(
    words: Sequence[object],
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    setup: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as subprocess.run does."""
    process = Forked(words, cwd, environment, setup)
    out, errors = process.communicate(timeout=400)
    return subprocess.CompletedProcess(process.words, process.returncode, out, errors)


def make_file() -> Path:
    """An empty file for what a process says."""
    handle, name = mkstemp()
    os.close(handle)
    return Path(name)


def run_words(
    words: list[str],
    files: list[Path],
    cwd: str,
    environment: dict[str, str],
    setup: Callable[[], None] | None,
) -> None:
    """Run the command in the forked process."""
    os.setsid()
    for descriptor, path in zip((1, 2), files, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if setup:
        setup()
    sys.argv = words
    if words[0] == "train":
        from train.__main__ import main
    else:
        from cli import main
    main()


def start_ranks(
    num_ranks: int, overrides: Sequence[str], setup: Callable[[], None] | None = None
) -> list[Forked]:
    """A run of several ranks on this machine; each calls `setup` first."""
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_port())}
    variables["WORLD_SIZE"] = str(num_ranks)
    return [
        Forked(
            ["train", *overrides],
            environment=variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            setup=setup,
        )
        for rank in range(num_ranks)
    ]


def run_ranks(
    num_ranks: int, overrides: Sequence[str], setup: Callable[[], None] | None = None
) -> list[str]:
    """A run of several ranks on this machine, to its end; what each said on standard error."""
    ranks = start_ranks(num_ranks, overrides, setup)
    said = [rank.communicate(timeout=400)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * num_ranks, said
    return said


def call_ranks(num_ranks: int, function: Callable[..., None], *arguments: object) -> None:
    """Call function(rank, *arguments) in each of several processes that are joined by gloo.

    `rank` is a train.ranks.distributed.Rank, `function` one of a module; none may raise.
    """
    port, said = find_port(), make_file()
    processes = [
        FORKS.Process(target=call_rank, args=(rank, num_ranks, port, said, function, arguments))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * num_ranks, said.read_text()
    said.unlink()


def call_rank(
    rank: int,
    num_ranks: int,
    port: int,
    said: Path,
    function: Callable[..., None],
    arguments: tuple[object, ...],
) -> None:
    """Call the function in the forked process, as one of the ranks."""
    from train.config import DistributedConfig
    from train.ranks.distributed import join_ranks

    for descriptor in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
    with join_ranks(DistributedConfig(device="cpu")) as joined:
        function(joined, *arguments)
