"""What computes attention in a run: the settings' wish, or the fastest kernel that its GPU has."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from model.attention import Heads, use_attention
from model.documents import computes_at_once
from train.config import Config
from train.step.precision import DTYPES


@contextmanager
def use_kernels(config: Config, device: torch.device) -> Iterator[str]:
    """A context in which the run computes; it gives what computes attention, in words.

    Entering it raises ValueError where `training.attention` names a kernel that cannot do it here.
    """
    model = config.model
    heads = Heads(
        device,
        DTYPES[config.training.precision],
        model.num_attention_heads,
        model.num_kv_heads,
        model.head_size,
        config.data.max_seq_length,
        config.data.attention == "document",
    )
    with use_attention(config.training.attention, heads) as kernel:
        if not heads.by_document:
            yield kernel
        elif computes_at_once(device, heads.dtype, heads.head_size):
            yield f"{kernel}, inside documents, all at once"
        else:
            yield f"{kernel}, inside documents, one after another"
