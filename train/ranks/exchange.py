"""What ranks tell each other besides numbers: plain data as JSON, and tensors that one has read.

Data travel as the bytes of JSON: nothing is unpickled that another process has sent.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from train.ranks.distributed import Rank


def share_json(rank: Rank, value: Any) -> Any:
    """The first rank's plain data, on all ranks; the others' `value` does not matter."""
    if rank.world_size == 1:
        return value
    content = encode(value if rank.is_first else None, rank)
    size = torch.tensor(len(content), device=rank.device)
    dist.broadcast(size, 0)
    if not rank.is_first:
        content = torch.empty(int(size), dtype=torch.uint8, device=rank.device)
    dist.broadcast(content, 0)
    return decode(content)


def gather_json(rank: Rank, value: Any) -> list[Any]:
    """The plain data of every rank, in their order, on all ranks."""
    if rank.world_size == 1:
        return [value]
    content = encode(value, rank)
    sizes = [torch.zeros((), dtype=torch.int64, device=rank.device) for _ in range(rank.world_size)]
    dist.all_gather(sizes, torch.tensor(len(content), device=rank.device))
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=rank.device)
    padded[: len(content)] = content
    found = [torch.empty_like(padded) for _ in range(rank.world_size)]
    dist.all_gather(found, padded)
    return [decode(part[: int(size)]) for part, size in zip(found, sizes, strict=True)]


def encode(value: Any, rank: Rank) -> Tensor:
    """Plain data as the bytes of JSON on the rank's device."""
    content = bytearray(json.dumps(value).encode())
    return torch.frombuffer(content, dtype=torch.uint8).to(rank.device)


def decode(content: Tensor) -> Any:
    """What `encode` made bytes of."""
    return json.loads(bytes(content.tolist()))


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded over the ranks, which then all call this."""
    if isinstance(tensor, DTensor):
        whole: Tensor = tensor.full_tensor()
        return whole
    return tensor


def spread_tensor(rank: Rank, target: Tensor, fill: Callable[[Tensor], None]) -> None:
    """Give `target` its values on all ranks: the first one alone calls `fill` with a whole one.

    `target` may be sharded over the ranks; all call this for the same tensors in the same order.
    """
    whole = target.detach()
    if isinstance(whole, DTensor):
        deal_rows(rank, whole.to_local(), whole.shape, fill)
        return
    if rank.is_first:
        fill(whole)
    if rank.world_size > 1:
        dist.broadcast(whole, 0)


def deal_rows(
    rank: Rank, own: Tensor, shape: torch.Size, fill: Callable[[Tensor], None], owner: int = 0
) -> None:
    """Give each rank its `own` rows of a tensor of this shape, of which `owner` has all meanwhile.

    Ranks have the same number of rows, but for the last ones; as torch.chunk deals them.
    """
    num_rows = -(-shape[0] // rank.world_size)
    part, parts = own.new_empty((num_rows, *shape[1:])), None
    if rank.rank == owner:
        whole = own.new_empty((num_rows * rank.world_size, *shape[1:]))
        fill(whole[: shape[0]])
        parts = list(whole.chunk(rank.world_size))
    dist.scatter(part, parts, owner)
    own.copy_(part[: len(own)])


def gather_rows(rank: Rank, own: Tensor, shape: torch.Size, owner: int) -> Tensor | None:
    """The inverse: the whole of a tensor on the rank `owner`, None on all others."""
    num_rows = -(-shape[0] // rank.world_size)
    part, parts = own.new_zeros((num_rows, *shape[1:])), None
    part[: len(own)] = own
    if rank.rank == owner:
        whole = own.new_empty((num_rows * rank.world_size, *shape[1:]))
        parts = list(whole.chunk(rank.world_size))
    dist.gather(part, parts, owner)
    return None if parts is None else whole[: shape[0]]
