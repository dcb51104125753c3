"""Logits from hidden states, chunk by chunk, to losses and gradients: no two chunks at once.

N tokens (over all rows), C tokens per chunk, D hidden, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from model.logits.differentiate import Differentiate
from model.products import as_factor, multiply

# The most memory a chunk's fp32 logits may take. On a CPU, with a vocabulary of 50,257, 512 tokens
# are faster than 256 and about as fast as 1,024; a GPU needs thousands to be busy.
MAX_LOGITS_BYTES = {"cpu": 128 * 2**20, "cuda": 2**30}

# Matrix products are faster with sides that are multiples of these: a chunk's tokens, and on CUDA
# the vocabulary.
CHUNK_TOKENS_MULTIPLE = 128
VOCABULARY_MULTIPLE = {"cpu": 1, "cuda": 64}


def choose_chunk_tokens(num_tokens: int, weight: Tensor) -> int:
    """C: chunks of about equal size, as few as the bound on a chunk's logits allows."""
    max_bytes = MAX_LOGITS_BYTES.get(weight.device.type, MAX_LOGITS_BYTES["cpu"])
    max_multiples = max(1, max_bytes // (len(weight) * 4 * CHUNK_TOKENS_MULTIPLE))
    num_multiples = math.ceil(num_tokens / CHUNK_TOKENS_MULTIPLE)
    num_chunks = max(1, math.ceil(num_multiples / max_multiples))
    return math.ceil(num_multiples / num_chunks) * CHUNK_TOKENS_MULTIPLE


def go_through(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scales: Sequence[Tensor] | None,
    dtype: torch.dtype,
    chunk_tokens: int,
    differentiate: Differentiate,
    z_loss: float = 0.0,
    is_frozen: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Chunk by chunk, the losses (N,) or (2, N), and the gradients (N, D) and (V, D).

    `scales` are what each chunk's logits' gradient is multiplied by; None = there are none. Where
    weight `is_frozen`, it has none, (0, 0).
    """
    num_tokens, num_words = len(targets), len(weight)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        inputs, head = as_factor(hidden, dtype), pad_vocabulary(as_factor(weight, dtype))
        shape = (2, num_tokens) if z_loss else (num_tokens,)
        losses = torch.empty(shape, dtype=torch.float32, device=hidden.device)
        dhidden = torch.empty_like(hidden)
        # (D, V), because the products it sums are faster that way around.
        dhead = losses.new_empty(0, 0)
        of_chunks = (
            *(torch.split(tensor, chunk_tokens) for tensor in (inputs, targets)),
            torch.split(losses, chunk_tokens, dim=-1),
            torch.split(dhidden, chunk_tokens),
            [None] * -(-num_tokens // chunk_tokens) if scales is None else scales,
        )
        for number, (rows, words, chunk_losses, drows, factor) in enumerate(
            zip(*of_chunks, strict=True)
        ):
            logits = multiply(rows, head.T)
            logits.narrow(1, num_words, len(head) - num_words).fill_(-torch.inf)
            found, dlogits = differentiate(logits, words, factor, dtype, z_loss)
            chunk_losses.copy_(found)
            del logits  # Each goes before the next large one is made.
            if dlogits is not None:
                dlogits = as_factor(dlogits, dtype)
                drows.copy_(multiply(dlogits, head))
                if not is_frozen:
                    summand = multiply(rows.T, dlogits)
                    dhead = dhead.add_(summand) if number else summand
                    del summand
                del dlogits
        dweight = dhead.narrow(1, 0, num_words).T if dhead.numel() else dhead
        return losses, dhidden, dweight.contiguous()


def choose_dtype(hidden: Tensor) -> torch.dtype:
    """What products with hidden take: the autocast type where autocast is on, else hidden's."""
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return hidden.dtype


def pad_vocabulary(weight: Tensor) -> Tensor:
    """weight (V, D) padded with zero rows to the device's multiple; nothing outside sees them."""
    num_missing = -len(weight) % VOCABULARY_MULTIPLE.get(weight.device.type, 1)
    return pad(weight, (0, 0, 0, num_missing)) if num_missing else weight
