"""Memory for weights in huge pages, where the system has them: what is read whole, again and again.

A processor looks up where each page of memory is, which is seldom known already when pages are of
4 KiB and a model's weights pass by. docs/log.md says what a step gained.
"""

import ctypes
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

HUGE = 2**21
# Asked for at a time: a region is given back once no weight in it is left.
REGION_BYTES = 2**25
ALIGNMENT = 64
ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux alone.


class Pages:
    """Gives out memory for weights, region by region."""

    def __init__(self) -> None:
        self._region: mmap.mmap | None = None
        self._start = self._end = 0  # Of what is left of the region.

    def empty(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> Tensor:
        """As `torch.empty`; for a CPU in huge pages, where there are some."""
        num_numbers = math.prod(shape)
        num_bytes = num_numbers * dtype.itemsize
        if ADVICE is None or num_bytes == 0 or torch.device(device).type != "cpu":
            return torch.empty(*shape, dtype=dtype, device=device)
        if self._region is None or self._start + num_bytes > self._end:
            self._open(num_bytes)
        assert self._region is not None
        tensor = torch.frombuffer(self._region, dtype=dtype, count=num_numbers, offset=self._start)
        self._start += -(-num_bytes // ALIGNMENT) * ALIGNMENT
        return tensor.view(*shape)

    def _open(self, num_bytes: int) -> None:
        """A region for so many bytes or more; only what is written to takes memory."""
        assert ADVICE is not None
        size = max(REGION_BYTES, -(-num_bytes // HUGE) * HUGE)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._region = mmap.mmap(-1, size + HUGE, flags=flags)
        self._region.madvise(ADVICE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._region))
        self._start = -address % HUGE
        self._end = self._start + size
