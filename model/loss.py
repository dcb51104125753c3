"""The mean cross-entropy of the head's logits, and its gradients, without ever holding all logits.

With 16,384 tokens and a vocabulary of 50,257, fp32 logits and their gradient would take 6.6 GB.
Here one chunk of tokens at a time goes through the head, and its gradients are computed at once, in
the forward pass: three matrix products per chunk, as many as without chunks, and no logits are kept
or computed twice. Besides the gradients, one chunk's logits are all that is in memory, and their
gradient if it is in half precision or computed by compiled code.

N tokens (over all rows), C tokens per chunk, D hidden, V vocabulary.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.logits.chunks import choose_chunk_tokens, choose_dtype, go_through, pad_vocabulary
from model.logits.differentiate import Differentiate, differentiate_in_place
from model.products import as_factor, multiply

# A target that does not count: padding, or what would be in another row. As in torch.
IGNORED = -100

# The losses of targets in fp32, and which of them were the likeliest: (N,) each.
Scores = tuple[Tensor, Tensor]


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
    none. Without any IGNORED target, the result is the same up to rounding.
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


def lose_each(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk_tokens: int | None = None,
    differentiate: Differentiate = differentiate_in_place,
) -> Tensor:
    """-log softmax(hidden @ weight.T)[target] of each of targets (...): fp32, 0 where IGNORED.

    For losses whose weights depend on the other targets' losses. The weights are only known after
    the forward pass, so a chunk's logits are computed again in the backward pass: four matrix
    products for each chunk. The incoming gradient, which includes the loss scale, multiplies
    softmax - onehot in fp32.
    """
    ignored = targets == IGNORED
    words = targets.masked_fill(ignored, 0).flatten()
    chunk_tokens = chunk_tokens or choose_chunk_tokens(len(words), weight)
    apply: Any = _EachLoss.apply
    losses: Tensor = apply(hidden.flatten(0, -2), weight, words, chunk_tokens, differentiate)
    return losses.view(targets.shape).masked_fill(ignored, 0)


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
    weight, dtype = cast(Tensor, head.weight), choose_dtype(hidden)
    chunk = choose_chunk_tokens(len(targets), weight)
    losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    is_best = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
    is_autocast = torch.is_autocast_enabled(hidden.device.type)
    with torch.autocast(hidden.device.type, enabled=False):
        factor = pad_vocabulary(as_factor(weight, dtype)) if is_autocast else weight
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
        options = *options, not ctx.needs_input_grad[1]
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
        dweight = dweight.mul_(missing) if ctx.needs_input_grad[1] else None
        return dhidden.mul_(missing), dweight, *(6 * [None])


class _EachLoss(torch.autograd.Function):
    """Keeps what logits are computed from, and computes them again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk_tokens: int,
        differentiate: Differentiate,
    ) -> Tensor:
        ctx.options = choose_dtype(hidden), chunk_tokens, differentiate
        ctx.save_for_backward(hidden, weight, targets)
        return go_through(hidden, weight, targets, None, *ctx.options)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlosses: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        dtype, chunk_tokens, differentiate = ctx.options
        scales = torch.split(dlosses.unsqueeze(1), chunk_tokens)
        options = dtype, chunk_tokens, differentiate, 0.0, not ctx.needs_input_grad[1]
        _, dhidden, dweight = go_through(hidden, weight, targets, scales, *options)
        return dhidden, dweight if ctx.needs_input_grad[1] else None, None, None, None


def _compute(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    grad_scale: Tensor | float | None,
    chunk_tokens: int,
    differentiate: Differentiate,
    z_loss: float = 0.0,
    has_ignored: bool = False,
    is_frozen: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, or both, and the gradients (N, D) and (V, D) times grad_scale; with None, none."""
    num_tokens = len(targets)
    with torch.no_grad():
        # What counts, on the device: nothing here waits for it.
        counted = (targets != IGNORED) if has_ignored else None
        count = num_tokens if counted is None else counted.sum().clamp(min=1)
        scales = None
        if grad_scale is not None:
            # The sum makes a tensor of a number.
            scale = torch.zeros((), device=hidden.device) + grad_scale / count
            scales = [scale] * -(-num_tokens // chunk_tokens)
        if counted is not None:
            targets = targets.where(counted, 0)
            if scales is not None:
                scales = [*torch.split((counted * scale).unsqueeze(1), chunk_tokens)]
        rest = choose_dtype(hidden), chunk_tokens, differentiate, z_loss, is_frozen
        losses, dhidden, dweight = go_through(hidden, weight, targets, scales, *rest)
        if counted is None:
            mean = losses.mean(1) if z_loss else losses.mean()
        else:
            mean = losses.where(counted, 0).sum(-1) / count
        return mean, dhidden, dweight
