"""What computes attention in a run: the settings' wish, or the fastest kernel that its GPU has."""

from contextlib import AbstractContextManager

import torch

from model.attention import Heads, use_attention
from train.config import Config
from train.step.precision import DTYPES


def use_kernels(config: Config, device: torch.device) -> AbstractContextManager[str]:
    """A context in which the run computes; it gives the name of the kernel of attention.

    Entering it raises ValueError where `training.attention` names one that cannot do it here.
    """
    model = config.model
    heads = Heads(
        device,
        DTYPES[config.training.precision],
        model.num_attention_heads,
        model.num_kv_heads,
        model.head_size,
        config.data.max_seq_length,
    )
    return use_attention(config.training.attention, heads)
