"""model/step.c compiled for the machine at hand, once, and kept in the user's cache.

Where there is no C compiler, or anything else fails, there is no library and torch computes alone.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger("velocity")

# With any value, nothing is compiled.
SWITCH = "VELOCITY_NO_COMPILER"
SOURCE = Path(__file__).with_name("step.c")
# OpenMP is not linked: its functions are found in the library that torch has loaded, so that torch
# and this share their threads.
COMPILE = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-Wno-psabi", "-c")
LINK = ("-shared", "-lm")
COMPILE_SECONDS = 60


@functools.cache
def find_library() -> ctypes.CDLL | None:
    """The library of model/step.c; None where it cannot be made or loaded."""
    if os.environ.get(SWITCH) or sys.platform == "win32":
        return None
    try:
        return ctypes.CDLL(str(build()))
    except (OSError, subprocess.SubprocessError) as error:
        note_fault(str(error))
        return None


def note_fault(fault: str) -> None:
    """Say why torch computes alone, to those who look for it."""
    logger.debug("velocity: torch computes alone, as model/step.c cannot be used: %s", fault)


def build() -> Path:
    """The compiled library, from the cache or made now."""
    # CC may hold a launcher and options, too: "ccache gcc".
    compiler = shlex.split(os.environ.get("CC", "")) or find_compiler()
    source = SOURCE.read_text("utf-8")
    key = "\0".join((source, *COMPILE, *LINK, *compiler, describe_processor()))
    path = find_folder() / f"step-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"

    def make(linked: Path) -> None:
        compiled = f"{linked}.o"
        run([*compiler, *COMPILE, str(SOURCE), "-o", compiled])
        run([*compiler, "-o", str(linked), compiled, *LINK])

    if not path.is_file():
        replace_file(path, make)
    return path


def find_folder() -> Path:
    """Where what is made for this machine is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "velocity"


def replace_file(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file under another name, and put it at its place whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        new = Path(work) / path.name
        make(new)
        os.replace(new, path)


def find_compiler() -> list[str]:
    """The machine's C compiler, as a command; OSError without one."""
    path = shutil.which("cc") or shutil.which("gcc")
    if path is None:
        raise OSError("no C compiler (cc) was found")
    return [path]


def run(command: list[str]) -> None:
    """Run a command of the compiler; an OSError or SubprocessError if it fails."""
    subprocess.run(command, capture_output=True, check=True, timeout=COMPILE_SECONDS)


def describe_processor() -> str:
    """What decides which instructions may be used: a home folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    flags = [line for line in lines if line.startswith(("flags", "Features"))]
    return "\0".join((platform.machine(), platform.processor(), *flags[:1]))
