"""AdamW, and one update: unscale, clip, step or skip."""

import torch
from torch import Tensor, nn

from train.ranks.exchange import full_tensor
from train.step.loss_scale import update_scale
from train.training_config import TrainingConfig


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Fused AdamW; matrices and embeddings decay, norms do not."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (config.adam_beta1, config.adam_beta2)
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon, fused=True
    )


def clip_gradients(
    optimizer: torch.optim.AdamW, scaler: torch.amp.GradScaler, max_grad_norm: float
) -> Tensor:
    """Unscale the accumulated gradients and clip them; returns their norm before, 0-dim.

    They are averaged over the ranks, so it is the same on all. Nothing waits for the device.
    """
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    foreach = parameters[0].device.type != "mps"  # Which has no such kernels.
    return full_tensor(nn.utils.clip_grad_norm_(parameters, max_grad_norm, foreach=foreach))


def apply_gradients(
    optimizer: torch.optim.AdamW,
    scaler: torch.amp.GradScaler,
    learning_rate: float,
    overflowed: bool,
    is_applied: bool,
    min_loss_scale: float,
) -> None:
    """Update the weights with what `clip_gradients` left, or skip that; clears the gradients.

    `overflowed` says that gradients were not finite; then the loss scale goes down.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    if is_applied:
        scaler.step(optimizer)
    update_scale(scaler, overflowed, min_loss_scale)
    # Zeroed, not dropped: under DDP they are views into its buckets, which None would detach.
    optimizer.zero_grad(set_to_none=False)
