"""How the ranks share a model: each has all of it (ddp), or a part of every weight (fsdp).

ddp     weights, gradients and AdamW's means are whole on every rank: 16 bytes a parameter, and 4
        for the buckets in which gradients are averaged
fsdp    each rank keeps its rows of every weight, and of what belongs to it: 16 bytes a parameter
        over the number of ranks. A block's weights are gathered when it computes, forward and
        backward, and its gradients averaged and cut up when its backward pass is done (torch's
        FSDP2, "fully sharded data parallel"); the embedding, which is also the head, and the last
        norm stay gathered from the forward pass to the end of the backward pass

Gathered weights and averaged gradients are fp32, so a step computes what it computes under ddp.
Checkpoints hold whole tensors: any number of ranks goes on from them, with either strategy. On one
rank there is nothing to share, and both are the plain model.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from train.config import DistributedConfig
from train.ranks.distributed import Rank


def is_sharding(config: DistributedConfig, rank: Rank) -> bool:
    """Whether each rank will keep only a part of the model."""
    return config.strategy == "fsdp" and rank.world_size > 1


def share_model(model: nn.Module, rank: Rank) -> nn.Module:
    """The model under DDP, which averages the gradients.

    On one rank, and if it is cut up, the model itself.
    """
    if rank.world_size == 1 or isinstance(model, FSDPModule):
        return model
    device_ids = [rank.device] if rank.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)


def shard_model(model: nn.Module, blocks: Iterable[nn.Module], rank: Rank) -> None:
    """Cut every weight up, in place, so that this rank keeps its rows of it.

    The weights of each of `blocks` are gathered together when it is called, all others when the
    model is. The model may be on the meta device; then `fill` gives it its numbers.
    """
    mesh = init_device_mesh(rank.device.type, (rank.world_size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def share_gradients(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """A micro-step's context: under DDP only the last one of a step averages the gradients.

    Under fsdp every one does. Otherwise each rank would add them up whole, 4 bytes a parameter, and
    that memory is better spent on a larger micro-batch, which is fewer micro-steps.
    """
    if is_last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


def fill(model: nn.Module, tensors: Iterable[tuple[str, Tensor]], device: torch.device) -> None:
    """Give the sharded model its numbers: whole weights by name, of which this rank takes its rows.

    One by one, so that no more than one whole weight need be in memory.
    """
    weights = dict(model.named_parameters())
    parts = {name: own_part(whole, weights[name], device) for name, whole in tensors}
    assert parts.keys() == weights.keys()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    model.load_state_dict(parts, strict=False, assign=True)


def own_part(whole: Tensor, weight: Tensor, device: torch.device) -> Tensor:
    """A copy on `device` of what this rank keeps of a tensor that is laid out as `weight` is.

    That is all of it, unless `weight` is sharded and the tensor has its shape.
    """
    if not isinstance(weight, DTensor) or whole.dim() == 0:
        return whole.to(device, copy=True)
    mesh = weight.device_mesh
    rows = -(-len(whole) // mesh.size())  # The first ranks have this many, as torch.chunk cuts.
    first = min(rows * mesh.get_local_rank(), len(whole))
    part = whole[first : first + rows].to(device, copy=True)
    return DTensor.from_local(
        part,
        mesh,
        weight.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor, whole; where it is sharded, all ranks call this together."""
    if isinstance(tensor, DTensor):
        whole: Tensor = tensor.full_tensor()
        return whole
    return tensor
