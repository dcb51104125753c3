"""The optimizer, what it keeps, and one update: unscale, clip, step or skip."""

import torch
from torch import Tensor, nn

from train.ranks.distributed import Rank
from train.ranks.exchange import full_tensor
from train.step.loss_scale import update_scale
from train.step.muon import Muon
from train.training_config import TrainingConfig

# In the names of the blocks' weights.
BLOCKS = "model.layers."
EMBEDDING = "model.embed_tokens."


def make_optimizer(model: nn.Module, config: TrainingConfig, rank: Rank) -> torch.optim.Optimizer:
    """Fused AdamW; or Muon for the blocks' matrices, and AdamW for the rest.

    Matrices decay, norms do not, and embeddings do unless the settings say otherwise. A group's
    learning rate is `relative_rate` times that of the schedule.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    taken: dict[str, Tensor] = {}
    if config.optimizer == "muon":
        taken = {name: p for name, p in named.items() if name.startswith(BLOCKS) and p.dim() == 2}
    rest = {name: p for name, p in named.items() if name not in taken}
    decaying = {
        name: p
        for name, p in rest.items()
        if p.dim() >= 2 and (config.decay_embeddings or not name.startswith(EMBEDDING))
    }
    others = [p for name, p in rest.items() if name not in decaying]
    groups = [
        {"params": [*decaying.values()], "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        [group | {"relative_rate": 1.0} for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )
    return Muon(list(taken.values()), adamw, config, rank) if taken else adamw


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer zeros for all that it keeps, as it would itself in its first update."""
    for group in optimizer.param_groups:
        is_muon = "momentum" in group
        names = ("momentum_buffer",) if is_muon else ("exp_avg", "exp_avg_sq")
        for parameter in group["params"]:
            state = {} if is_muon else {"step": torch.zeros((), device=parameter.device)}
            state |= {name: torch.zeros_like(parameter, requires_grad=False) for name in names}
            optimizer.state[parameter] = state


def clip_gradients(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, max_grad_norm: float
) -> Tensor:
    """Unscale the accumulated gradients and clip them; returns their norm before, 0-dim.

    They are averaged over the ranks, so it is the same on all. Nothing waits for the device.
    """
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    foreach = parameters[0].device.type != "mps"  # Which has no such kernels.
    return full_tensor(nn.utils.clip_grad_norm_(parameters, max_grad_norm, foreach=foreach))


def apply_gradients(
    optimizer: torch.optim.Optimizer,
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
        group["lr"] = learning_rate * group["relative_rate"]
    if is_applied:
        scaler.step(optimizer)
    update_scale(scaler, overflowed, min_loss_scale)
    # Zeroed, not dropped: under DDP they are views into its buckets, which None would detach.
    optimizer.zero_grad(set_to_none=False)
