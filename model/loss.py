"""The mean cross-entropy of the head's logits, and its gradients, without ever holding all logits.

With 16,384 tokens and a vocabulary of 50,257, fp32 logits and their gradient would take 6.6 GB.
Here one chunk of tokens at a time goes through the head, and its gradients are computed at once, in
the forward pass: three matrix products per chunk, as many as without chunks, and no logits are kept
or computed twice.

N tokens (over all rows), C tokens per chunk, D hidden, V vocabulary.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from model.products import as_factor, multiply

# The most memory a chunk's fp32 logits may take. On a CPU, with a vocabulary of 50,257, 512 tokens
# are faster than 256 and about as fast as 1,024; a GPU needs thousands to be busy.
MAX_LOGITS_BYTES = {"cpu": 128 * 2**20, "cuda": 2**30}

# Matrix products are faster with sides that are multiples of these: a chunk's tokens, and on CUDA
# the vocabulary.
CHUNK_TOKENS_MULTIPLE = 128
VOCABULARY_MULTIPLE = {"cpu": 1, "cuda": 64}


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    grad_scale: float = 1.0,
    chunk_tokens: int | None = None,
) -> Tensor:
    """The mean over all tokens of -log softmax(hidden @ weight.T)[target]: a 0-dim fp32 tensor.

    hidden (..., D), weight (V, D), targets (...) of int64. Matrix products take
    factors of the autocast type where autocast is on, else of hidden's type; their results, the
    softmax and weight's gradient are fp32.

    `grad_scale` is the factor by which the caller multiplies the loss before backward: the loss
    scale divided by the accumulation steps. The gradients already contain it when they are
    computed, because (softmax - onehot) / N underflows in fp16; backward multiplies them by what is
    missing, the incoming gradient over grad_scale, which is then 1. With `chunk_tokens` None, the
    device decides.
    """
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    chunk_tokens = chunk_tokens or choose_chunk_tokens(len(targets), weight)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        apply: Any = _ChunkedCrossEntropy.apply
        return cast(Tensor, apply(hidden, weight, targets, grad_scale, chunk_tokens))
    return _compute(hidden, weight, targets, None, chunk_tokens)[0]


def choose_chunk_tokens(num_tokens: int, weight: Tensor) -> int:
    """C: chunks of about equal size, as few as the bound on a chunk's logits allows."""
    max_bytes = MAX_LOGITS_BYTES.get(weight.device.type, MAX_LOGITS_BYTES["cpu"])
    max_multiples = max(1, max_bytes // (len(weight) * 4 * CHUNK_TOKENS_MULTIPLE))
    num_multiples = math.ceil(num_tokens / CHUNK_TOKENS_MULTIPLE)
    num_chunks = max(1, math.ceil(num_multiples / max_multiples))
    return math.ceil(num_multiples / num_chunks) * CHUNK_TOKENS_MULTIPLE


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass and returns them in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        grad_scale: float,
        chunk_tokens: int,
    ) -> Tensor:
        loss, *gradients = _compute(hidden, weight, targets, grad_scale, chunk_tokens)
        ctx.grad_scale = grad_scale
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        # In place, to avoid a second (V, D); autograd itself refuses a second backward, as the
        # saved tensors have changed.
        missing = dloss / ctx.grad_scale
        dhidden, dweight = ctx.saved_tensors
        return dhidden.mul_(missing), dweight.mul_(missing), None, None, None


def _compute(
    hidden: Tensor, weight: Tensor, targets: Tensor, grad_scale: float | None, chunk_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its gradients (N, D) and (V, D) times grad_scale; with None, no gradients."""
    num_tokens, num_words = len(targets), len(weight)
    dtype = _choose_dtype(hidden)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        inputs, head = as_factor(hidden, dtype), _pad_vocabulary(as_factor(weight, dtype))
        losses = torch.empty(num_tokens, dtype=torch.float32, device=hidden.device)
        probs_space = losses.new_empty(min(chunk_tokens, num_tokens), len(head))
        dhidden = torch.empty_like(hidden)
        # (D, V), because the products it sums are faster that way around.
        dhead = losses.new_zeros(head.T.shape if grad_scale is not None else (0, 0))
        for start in range(0, num_tokens, chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            logits = multiply(inputs[chunk], head.T)
            logits[:, num_words:] = -torch.inf
            probs = probs_space[: len(logits)]
            losses[chunk] = _softmax_losses(logits, targets[chunk], out_probs=probs)
            if grad_scale is not None:
                dlogits = _differentiate(probs, targets[chunk], grad_scale / num_tokens, dtype)
                dhidden[chunk] = multiply(dlogits, head)
                dhead += multiply(inputs[chunk].T, dlogits)
        return losses.mean(), dhidden, dhead.T[:num_words].contiguous()


def _softmax_losses(logits: Tensor, targets: Tensor, out_probs: Tensor) -> Tensor:
    """-log softmax(logits)[target] for each token (C,); writes the softmax to `out_probs`."""
    torch.softmax(logits, dim=-1, out=out_probs)
    # The largest probability is 1 / sum(exp(logits - max)), which is never 0: it gives the
    # log of the sum without another pass over exp.
    log_sum = logits.amax(-1) - out_probs.amax(-1).log()
    return log_sum - logits.gather(1, targets.unsqueeze(1)).squeeze(1)


def _differentiate(probs: Tensor, targets: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """(softmax - onehot) * scale (C, V): scaled in fp32 first and only then rounded to dtype."""
    minus_one = probs.new_full((len(probs), 1), -1.0)
    probs.scatter_add_(1, targets.unsqueeze(1), minus_one)
    if dtype == torch.float32:
        return probs.mul_(scale)
    rounded = torch.empty_like(probs, dtype=dtype)
    torch.mul(probs, scale, out=rounded)
    return as_factor(rounded, dtype)


def _choose_dtype(hidden: Tensor) -> torch.dtype:
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return hidden.dtype


def _pad_vocabulary(weight: Tensor) -> Tensor:
    """weight (V, D) padded with zero rows to the device's multiple; nothing outside sees them."""
    num_missing = -len(weight) % VOCABULARY_MULTIPLE.get(weight.device.type, 1)
    return pad(weight, (0, 0, 0, num_missing)) if num_missing else weight
