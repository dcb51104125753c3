"""The loss of a chunk's logits, and its gradient: written for reading, and for a compiler.

C tokens of a chunk, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Of a chunk's logits (C, V) in fp32, which it may write over, targets (C,), a scale (0-dim, or
# (C, 1) where some targets are IGNORED, and are given as 0 with a scale of 0), a dtype
# and the z-loss's factor z: the losses (C,) in fp32, and (softmax - onehot) * scale (C, V), scaled
# in fp32 first and only then rounded to dtype. Without a scale, the losses alone. With z above 0,
# the losses and z * log(sum(exp(logits)))^2 as (2, C), and the gradient of their sum.
Differentiate = Callable[
    [Tensor, Tensor, Tensor | None, torch.dtype, float], tuple[Tensor, Tensor | None]
]


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
    places = targets.unsqueeze(1)
    probs.scatter_(1, places, probs.gather(1, places) - 1)
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
