"""The memory of a run on CPUs, kept by the process from one step to the next.

Logits, softmax and their gradient take some 100 MB each. glibc's malloc maps such blocks one by one
and gives them back when they are freed; each step then takes them anew, page by page, and the
kernel first fills each page with zeros: for a small model 60,000 page faults and up to a quarter of
the time of a step. Kept in the heap, the blocks of one step serve the next.
"""

import ctypes
import sys

import torch

# Parameters of mallopt(3), as malloc.h has them.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory(device: torch.device) -> None:
    """Have malloc use what a step frees again, however large, as long as this process lives.

    To be called after the first step: what stays, weights and optimizer, is then outside the heap
    and leaves no gaps in it. Nothing happens on a GPU, and where malloc is not glibc's.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none.
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # No block is mapped on its own;
        mallopt(M_TRIM_THRESHOLD, -1)  # the heap has them all, and does not shrink.
