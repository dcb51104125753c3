"""The mean cross-entropy of the head's logits, and its gradients, without ever holding all logits.

With 16,384 tokens and a vocabulary of 50,257, fp32 logits and their gradient would take 6.6 GB.
Here one chunk of tokens at a time goes through the head, and its gradients are computed at once, in
the forward pass: three matrix products per chunk, as many as without chunks, and no logits are kept
or computed twice. Besides the gradients, one chunk's logits are all that is in memory, and their
gradient if it is in half precision or computed by compiled code.

N tokens (over all rows), C tokens per chunk, D hidden, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from model.products import as_factor, multiply

# The most memory a chunk's fp32 logits may take. On a CPU, with a vocabulary of 50,257, 512 tokens
# are faster than 256 and about as fast as 1,024; a GPU needs thousands to be busy.
MAX_LOGITS_BYTES = {"cpu": 128 * 2**20, "cuda": 2**30}

# A target that does not count: padding, or what would be in another row. As in torch.
IGNORED = -100

# Matrix products are faster with sides that are multiples of these: a chunk's tokens, and on CUDA
# the vocabulary.
CHUNK_TOKENS_MULTIPLE = 128
VOCABULARY_MULTIPLE = {"cpu": 1, "cuda": 64}


# Of a chunk's logits (C, V) in fp32, which it may write over, targets (C,), a scale (0-dim, or
# (C, 1) where some targets are IGNORED, and are given as 0 with a scale of 0), a dtype
# and the z-loss's factor z: the losses (C,) in fp32, and (softmax - onehot) * scale (C, V), scaled
# in fp32 first and only then rounded to dtype. Without a scale, the losses alone. With z above 0,
# the losses and z * log(sum(exp(logits)))^2 as (2, C), and the gradient of their sum.
Differentiate = Callable[
    [Tensor, Tensor, Tensor | None, torch.dtype, float], tuple[Tensor, Tensor | None]
]


# The losses of targets in fp32, and which of them were the likeliest: (N,) each.
Scores = tuple[Tensor, Tensor]


def differentiate_in_place(
    logits: Tensor, targets: Tensor, scale: Tensor | None, dtype: torch.dtype, z_loss: float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """A chunk's losses and the logits' gradient, which in fp32 takes the place of the logits."""
    largest, target_logits = logits.amax(-1), logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    probs = torch.softmax(logits, dim=-1, out=logits)
    # The largest probability is 1 / sum(exp(logits - largest)), which is never 0: it gives the
    # log of the sum without another pass over exp.
    log_sums = largest - probs.amax(-1).log()
    losses = add_z_loss(log_sums - target_logits, log_sums, z_loss)
    if scale is None:
        return losses, None
    if z_loss:
        probs.mul_((1 + 2 * z_loss * log_sums).unsqueeze(1))
    probs.scatter_add_(1, targets.unsqueeze(1), probs.new_full((len(probs), 1), -1.0))
    if dtype == torch.float32:
        return losses, probs.mul_(scale)
    return losses, torch.mul(probs, scale, out=torch.empty_like(probs, dtype=dtype))


def differentiate_for_compiler(
    logits: Tensor, targets: Tensor, scale: Tensor | None, dtype: torch.dtype, z_loss: float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """The same in a form that a compiler makes two passes over the logits of."""
    largest = logits.amax(-1, keepdim=True)
    exps = (logits - largest).exp()
    sums = exps.sum(-1, keepdim=True)
    log_sums = largest + sums.log()
    losses = (log_sums - logits.gather(1, targets.unsqueeze(1))).squeeze(1)
    losses = add_z_loss(losses, log_sums.squeeze(1), z_loss)
    if scale is None:
        return losses, None
    probs = exps / sums
    if z_loss:
        probs = probs * (1 + 2 * z_loss * log_sums)
    onehot = torch.arange(logits.shape[1], device=logits.device) == targets.unsqueeze(1)
    return losses, ((probs - onehot.float()) * scale).to(dtype)


def add_z_loss(losses: Tensor, log_sums: Tensor, z_loss: float) -> Tensor:
    """The losses (C,); with z_loss, they and z_loss * log_sums^2 below them: (2, C)."""
    return torch.stack([losses, z_loss * log_sums.square()]) if z_loss else losses


def compile_differentiate(backend: str) -> Differentiate:
    """`differentiate_for_compiler`, compiled once for chunks of all sizes.

    The last chunk is smaller than the others, and torch would compile the first for its size alone
    and again for any with the second: a run that goes on would compute other chunks by the first
    kernel than the run that went through.
    """
    compiled = torch.compile(differentiate_for_compiler, backend=backend)

    def differentiate(
        logits: Tensor, targets: Tensor, scale: Tensor | None, dtype: torch.dtype, z_loss: float
    ) -> tuple[Tensor, Tensor | None]:
        for tensor in (logits, targets, scale):
            if tensor is not None and tensor.dim():
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return compiled(logits, targets, scale, dtype, z_loss)

    return differentiate


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    grad_scale: Tensor | float = 1.0,
    chunk_tokens: int | None = None,
    differentiate: Differentiate = differentiate_in_place,
    z_loss: float = 0.0,
    has_ignored: bool = False,
) -> Tensor:
    """The mean over all tokens of -log softmax(hidden @ weight.T)[target]: a 0-dim fp32 tensor.

    hidden (..., D), weight (V, D), targets (...) of int64. Matrix products take
    factors of the autocast type where autocast is on, else of hidden's type; their results, the
    softmax and weight's gradient are fp32.

    `grad_scale` is the factor by which the caller multiplies the loss before backward: the loss
    scale divided by the accumulation steps, as a number or 0-dim in fp32 on the device. The
    gradients already contain it when they are computed, because (softmax - onehot) / N underflows
    in fp16; backward multiplies them by what is missing, the incoming gradient over grad_scale,
    which is then 1. With `chunk_tokens` None, the device decides. `differentiate` may be that
    of `compile_differentiate`.

    With `z_loss`, two numbers (2,): that loss, and z_loss * log(sum(exp(logits)))^2, the mean of
    it, which keeps logits from drifting ("PaLM", Chowdhery et al. 2022, section 5). They are to be
    differentiated together, by the same factor: as their sum.

    With `has_ignored`, targets may be IGNORED: the means are over the others, and 0 if there are
    none. Who says so in vain gets the same numbers, up to rounding.
    """
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    chunk_tokens = chunk_tokens or choose_chunk_tokens(len(targets), weight)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        apply: Any = _ChunkedCrossEntropy.apply
        options = chunk_tokens, differentiate, z_loss, has_ignored
        return cast(Tensor, apply(hidden, weight, targets, grad_scale, *options))
    return _compute(
        hidden, weight, targets, None, chunk_tokens, differentiate, z_loss, has_ignored
    )[0]


def score_targets(
    hidden: Tensor, head: nn.Module, targets: Tensor, places: Tensor | None = None
) -> Scores:
    """The losses of targets (B, T) after hidden (B, T, D), and which were the likeliest.

    Both are (N,), row by row: of all B * T, or of those at `places` (B, T) of bool. The softmax is
    over all rows of the head. Under autocast, products are those of the training loss; else they
    are the head's own, which may be narrow.
    """
    hidden = hidden.flatten(0, 1) if places is None else hidden[places]
    targets = targets.flatten() if places is None else targets[places]
    weight, dtype = cast(Tensor, head.weight), _choose_dtype(hidden)
    chunk = choose_chunk_tokens(len(targets), weight)
    losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    is_best = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
    is_autocast = torch.is_autocast_enabled(hidden.device.type)
    with torch.autocast(hidden.device.type, enabled=False):
        factor = _pad_vocabulary(as_factor(weight, dtype)) if is_autocast else weight
        for first in range(0, len(targets), chunk):
            rows = slice(first, first + chunk)
            if is_autocast:
                logits = multiply(as_factor(hidden[rows], dtype), factor.T)
                logits.narrow(1, len(weight), len(factor) - len(weight)).fill_(-torch.inf)
            else:
                logits = head(hidden[rows]).float()
            is_best[rows] = logits.argmax(-1) == targets[rows]
            losses[rows], _ = differentiate_in_place(logits, targets[rows], None, torch.float32)
            del logits
    return losses, is_best


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
        grad_scale: Tensor | float,
        *options: Any,
    ) -> Tensor:
        loss, *gradients = _compute(hidden, weight, targets, grad_scale, *options)
        ctx.grad_scale = grad_scale
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        # In place, to avoid a second (V, D); autograd itself refuses a second backward, as the
        # saved tensors have changed.
        missing = (dloss[0] if dloss.dim() else dloss) / ctx.grad_scale
        dhidden, dweight = ctx.saved_tensors
        return dhidden.mul_(missing), dweight.mul_(missing), *(6 * [None])


def _compute(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    grad_scale: Tensor | float | None,
    chunk_tokens: int,
    differentiate: Differentiate,
    z_loss: float = 0.0,
    has_ignored: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, or both, and the gradients (N, D) and (V, D) times grad_scale; with None, none."""
    num_tokens, num_words = len(targets), len(weight)
    dtype = _choose_dtype(hidden)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        inputs, head = as_factor(hidden, dtype), _pad_vocabulary(as_factor(weight, dtype))
        shape = (2, num_tokens) if z_loss else (num_tokens,)
        losses = torch.empty(shape, dtype=torch.float32, device=hidden.device)
        # What counts, on the device: nothing here waits for it.
        counted = (targets != IGNORED) if has_ignored else None
        count = num_tokens if counted is None else counted.sum().clamp(min=1)
        # The sum makes a tensor of a number.
        scale = None if grad_scale is None else losses.new_zeros(()) + grad_scale / count
        scales = [scale] * -(-num_tokens // chunk_tokens)
        if counted is not None:
            targets = targets.where(counted, 0)
            if scale is not None:
                scales = [*torch.split((counted * scale).unsqueeze(1), chunk_tokens)]
        dhidden = torch.empty_like(hidden)
        # (D, V), because the products it sums are faster that way around.
        dhead = losses.new_empty(0, 0)
        of_chunks = (
            *(torch.split(tensor, chunk_tokens) for tensor in (inputs, targets)),
            torch.split(losses, chunk_tokens, dim=-1),
            torch.split(dhidden, chunk_tokens),
            scales,
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
                summand = multiply(rows.T, dlogits)
                dhead = dhead.add_(summand) if number else summand
                del dlogits, summand
        dweight = dhead.narrow(1, 0, num_words).T if dhead.numel() else dhead
        if counted is None:
            mean = losses.mean(1) if z_loss else losses.mean()
        else:
            mean = losses.where(counted, 0).sum(-1) / count
        return mean, dhidden, dweight.contiguous()


def _choose_dtype(hidden: Tensor) -> torch.dtype:
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return hidden.dtype


def _pad_vocabulary(weight: Tensor) -> Tensor:
    """weight (V, D) padded with zero rows to the device's multiple; nothing outside sees them."""
    num_missing = -len(weight) % VOCABULARY_MULTIPLE.get(weight.device.type, 1)
    return pad(weight, (0, 0, 0, num_missing)) if num_missing else weight
