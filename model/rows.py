"""Products of a few rows with large weights on a CPU, as fast as the weights are read from memory.

A new token costs one such product for each weight. torch's own take a small part of what memory
gives, as they are made for many rows. model/rows.c is compiled once for the machine at hand, if it
has a C compiler, compared with torch, and kept in the user's cache; where any of that fails, there
is nothing here to use and torch's products stay.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger("velocity")

# With any value, nothing is compiled and torch's products are used.
SWITCH = "VELOCITY_NO_COMPILER"
SOURCE = Path(__file__).with_name("rows.c")
# OpenMP is not linked: its functions are found in the library that torch has loaded, so that torch
# and this share their threads.
COMPILE = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-Wno-psabi", "-c")
COMPILE_SECONDS = 60
FUNCTIONS = {
    torch.float32: "rows_f32",
    torch.bfloat16: "rows_bf16",
    torch.float16: "rows_f16",
    torch.int8: "rows_i8",
}
# x (M, K), weight (N, K) and scale (N,) or None give (M, N) in fp32.
Rows = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@functools.cache
def find_rows() -> Rows | None:
    """The compiled product; None without a C compiler, or where it does not equal torch's."""
    if os.environ.get(SWITCH) or sys.platform == "win32":
        return None
    try:
        library = ctypes.CDLL(str(_build()))
        rows = _bind(library)
        fault = _find_fault(rows)
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        fault = str(error)
    if fault is None:
        return rows
    logger.debug("velocity: torch's products are used, as model/rows.c cannot be: %s", fault)
    return None


def _build() -> Path:
    """The compiled library, from the cache or made now."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise OSError("no C compiler (cc) was found")
    source = SOURCE.read_bytes()
    key = "\0".join((source.decode(), *COMPILE, compiler, _describe_processor()))
    folder = _find_cache()
    path = folder / f"rows-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            compiled, linked = f"{work}/rows.o", f"{work}/rows.so"
            for arguments in (
                (*COMPILE, str(SOURCE), "-o", compiled),
                ("-shared", compiled, "-o", linked),
            ):
                subprocess.run(
                    [compiler, *arguments], capture_output=True, check=True, timeout=COMPILE_SECONDS
                )
            os.replace(linked, path)
    return path


def _find_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "velocity"


def _describe_processor() -> str:
    """What decides which instructions may be used: a home folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = [line for line in lines if line.startswith(("flags", "Features"))]
    return "\0".join((platform.machine(), platform.processor(), *flags[:1]))


def _bind(library: ctypes.CDLL) -> Rows:
    functions = {dtype: getattr(library, name) for dtype, name in FUNCTIONS.items()}
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    for function in functions.values():
        function.argtypes = (pointer, pointer, pointer, pointer, size, size, size, ctypes.c_int)
        function.restype = None

    def rows(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
        (num_rows, width), num_outputs = x.shape, len(weight)
        x, y = x.contiguous(), torch.empty(num_rows, num_outputs)
        functions[weight.dtype](
            x.data_ptr(),
            weight.data_ptr(),
            None if scale is None else scale.data_ptr(),
            y.data_ptr(),
            num_rows,
            num_outputs,
            width,
            torch.get_num_threads(),
        )
        return y

    return rows


def _find_fault(rows: Rows) -> str | None:
    """How the products differ from torch's, for every dtype and for sizes that end in a rest."""
    random = torch.Generator().manual_seed(0)
    for dtype in FUNCTIONS:
        for num_rows, num_outputs, width in ((1, 9, 70), (7, 6, 64)):
            x = torch.randn(num_rows, width, generator=random)
            weight = (20 * torch.randn(num_outputs, width, generator=random)).to(dtype)
            scale = torch.rand(num_outputs, generator=random) if dtype == torch.int8 else None
            expected = F.linear(x, weight.float()) * (1 if scale is None else scale)
            difference = (rows(x, weight, scale) - expected).abs().max()
            if not difference < 1e-5 * 20 * width:
                return f"its products of {dtype} differ from torch's by {difference:.3g}"
    return None
