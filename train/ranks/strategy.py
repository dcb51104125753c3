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
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    bf16_compress_hook,
    fp16_compress_hook,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from train.config import DistributedConfig
from train.ranks.distributed import Rank

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def is_sharding(config: DistributedConfig, rank: Rank) -> bool:
    """Whether each rank will keep only a part of the model."""
    return config.strategy == "fsdp" and rank.world_size > 1


def check_compression(config: DistributedConfig, rank: Rank) -> None:
    """Raise ValueError for gradients sent in bf16 other than by NCCL, which torch cannot."""
    has_nccl = rank.device.type == "cuda" and config.backend != "gloo"
    if config.gradient_compression == "bf16" and rank.world_size > 1 and not has_nccl:
        raise ValueError(
            "distributed.gradient_compression is bf16, which needs GPUs and "
            "distributed.backend=nccl; set distributed.gradient_compression=fp16 or none"
        )


def share_model(model: nn.Module, rank: Rank, config: DistributedConfig) -> nn.Module:
    """The model under DDP, which averages the gradients.

    On one rank, and where it is cut up already, the model itself.
    """
    if rank.world_size == 1 or isinstance(model, FSDPModule):
        return model
    device_ids = [rank.device] if rank.device.type == "cuda" else None
    shared = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
    if config.gradient_compression != "none":
        # They divide by the number of ranks before they add up, so what is finite stays finite.
        hooks = {"fp16": fp16_compress_hook, "bf16": bf16_compress_hook}
        shared.register_comm_hook(None, hooks[config.gradient_compression])
    return shared


def shard_model(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    methods: Iterable[str],
    rank: Rank,
    config: DistributedConfig,
) -> None:
    """Cut every weight up, in place, so that this rank keeps its rows of it.

    The weights of each of `blocks` are gathered together when it is called, all others when the
    model or one of its `methods` is; then all ranks must call it. After a pass without gradients
    the latter stay gathered until the next backward pass, or `state_dict`, which has the parts. The
    model may be on the meta device; then `fill` gives it its numbers.
    """
    mesh = init_device_mesh(rank.device.type, (rank.world_size,))
    policy = MixedPrecisionPolicy(reduce_dtype=HALF.get(config.gradient_compression))
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for method in methods:
        register_fsdp_forward_method(model, method)


def share_gradients(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """A micro-step's context: under DDP only the last one of a step averages the gradients.

    Under fsdp every one does. Otherwise each rank would add them up whole, 4 bytes a parameter, and
    that memory is better spent on a larger micro-batch, which is fewer micro-steps.
    """
    if is_last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


def fill(model: nn.Module, weights: Iterable[tuple[str, Tensor]], rank: Rank) -> None:
    """Give a sharded model its numbers: whole weights by name, of which this rank keeps its rows.

    They are taken one by one, so that no two need be in memory.
    """
    shards = dict(model.named_parameters())
    parts = {name: take_part(whole, shards[name], rank) for name, whole in weights}
    assert parts.keys() == shards.keys()
    model.load_state_dict(parts, strict=False, assign=True)


def take_part(whole: Tensor, shard: Tensor, rank: Rank) -> DTensor:
    """A copy of this rank's rows of a weight, sharded as `shard` is."""
    assert isinstance(shard, DTensor)
    num_rows = -(-len(whole) // rank.world_size)  # The last ranks have fewer, as of torch.chunk.
    rows = whole[num_rows * rank.rank :][:num_rows].clone()
    return DTensor.from_local(
        rows,
        shard.device_mesh,
        shard.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )
