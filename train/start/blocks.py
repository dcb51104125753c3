"""How blocks are computed: what they keep for the backward pass, and if they are compiled."""

import torch

from model.transformer import Transformer
from train.config import Config
from train.ranks.distributed import Rank
from train.start.fit import deals_evenly


def set_up_blocks(model: Transformer, config: Config, rank: Rank) -> None:
    """Let the blocks compute as the settings say; again with others, until the first pass."""
    checkpointing = config.training.activation_checkpointing
    assert checkpointing != "auto", "it is chosen before"
    model.activation_checkpointing = checkpointing
    compiles = config.training.compile
    if compiles or (compiles is None and rank.device.type == "cuda"):
        # DDP's graph splits would cut blocks apart; whole, each hands over its gradients when done.
        torch._dynamo.config.optimize_ddp = False
        model.compile_blocks(
            memory_budget=config.training.activation_memory_budget,
            takes_any_batch=not deals_evenly(config, rank.world_size),
        )
