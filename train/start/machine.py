"""The GPUs that this machine has, found without torch."""

import os
import shutil
import subprocess

MEBIBYTE = 2**20
NVIDIA_SMI_SECONDS = 10


def find_gpus() -> list[int]:
    """The bytes of memory of each NVIDIA GPU that a run would use; empty if there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    command = shutil.which("nvidia-smi")
    if visible in ("", "-1") or command is None:
        return []
    query = [command, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS)
        sizes = [int(line) * MEBIBYTE for line in answer.stdout.split("\n") if line.strip()]
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return []
    if answer.returncode:
        return []
    return sizes if visible is None else choose_visible(sizes, visible.split(","))


def choose_visible(sizes: list[int], visible: list[str]) -> list[int]:
    """The sizes of the GPUs that CUDA_VISIBLE_DEVICES names, by number or otherwise.

    >>> choose_visible([24, 24, 24, 80], ["3", "0"]), choose_visible([24, 80], ["GPU-1f0c"])
    ([80, 24], [24])
    """
    if all(name.strip().isdigit() for name in visible):
        return [sizes[int(name)] for name in visible if int(name) < len(sizes)]
    # Which one has that name is not known.
    return len(visible) * [min(sizes)] if sizes else []
