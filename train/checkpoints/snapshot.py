"""A snapshot: what a checkpoint will hold, copied to host memory so that training can go on.

Copying is all that a step waits for; what is slow, writing and hashing, is done from the copies
(train/checkpoints/saver.py). The memory is kept from one snapshot to the next.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.checkpoints.tensor_file import count_bytes
from train.ranks.exchange import full_tensor

# Memory is pinned in blocks of a power of two, which is what torch would round them up to.
BLOCK_BYTES = 1 << 30
ALIGNMENT = 64

# A file's tensors, by their names in it.
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """The files of a checkpoint, in memory."""

    step: int
    # The tensors of each .safetensors file.
    tensors: Mapping[str, Tensors]
    # The content of every other file.
    contents: Mapping[str, bytes]


class HostMemory:
    """Room for the tensors of a snapshot, pinned if they come from a GPU: copied at full speed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.block = torch.empty(0, dtype=torch.uint8)
        # Bytes of the first snapshot that have no place yet.
        self.left = 0
        self.places: dict[tuple[str, str], Tensor] = {}

    def expect(self, tensors: Iterable[Tensor]) -> None:
        """Say what a snapshot consists of before the first copy, as no more is to be allocated."""
        if not self.places:
            self.left = sum(round_up(count_bytes(tensor)) for tensor in tensors)

    def copy(self, file: str, name: str, tensor: Tensor) -> Tensor:
        """A copy of a tensor in its own place; on a GPU it is there after `wait`."""
        place = self.places.get((file, name))
        if place is None:
            room = self._take(tensor.nbytes)
            place = self.places[file, name] = room.view(tensor.dtype).view(tensor.shape)
        # Only CUDA is waited for.
        return place.copy_(tensor.detach(), non_blocking=self.device.type == "cuda")

    def wait(self) -> None:
        """Wait until all copies are there."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _take(self, num_bytes: int) -> Tensor:
        if num_bytes > len(self.block):
            self.block = self._allocate(max(num_bytes, min(self.left, BLOCK_BYTES)))
        self.left -= round_up(num_bytes)
        room, self.block = self.block[:num_bytes], self.block[round_up(num_bytes) :]
        return room

    def _allocate(self, num_bytes: int) -> Tensor:
        if self.device.type == "cuda":
            try:
                return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
            except RuntimeError:  # No more may be pinned: copied slower, and as right.
                pass
        return torch.empty(num_bytes, dtype=torch.uint8)


def round_up(num_bytes: int) -> int:
    """Where the next tensor may begin."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def take_snapshot(
    step: int,
    tensors: Mapping[str, Tensors],
    contents: Mapping[str, bytes],
    memory: HostMemory | None,
) -> Snapshot | None:
    """Copy a run's state; called by all ranks, as tensors may be sharded over them.

    `memory` is the first rank's, which alone keeps the copies; None on all others.
    """
    if memory:
        memory.expect(tensor for named in tensors.values() for tensor in named.values())
    copies: dict[str, dict[str, Tensor]] = {file: {} for file in tensors}
    for file, named in tensors.items():
        for name, tensor in named.items():
            whole = full_tensor(tensor)
            if memory:
                copies[file][name] = memory.copy(file, name, whole)
    if memory is None:
        return None
    memory.wait()
    return Snapshot(step, copies, contents)
