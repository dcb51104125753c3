"""AdamW, and one update: unscale, clip, step or skip."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import nn

from train.config import TrainingConfig


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


def make_scaler(device: torch.device, config: TrainingConfig) -> torch.amp.GradScaler:
    """Dynamic loss scaling for fp16; does nothing for bf16 and fp32."""
    return torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")


@dataclass
class SkipCount:
    """Counts the steps skipped because their gradients were not finite."""

    total: int = 0
    in_a_row: int = 0

    def add(self, skipped: bool) -> None:
        """Count one step, skipped or not."""
        self.total += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0

    def state_dict(self) -> dict[str, int]:
        """The counts, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take over a checkpoint's counts."""
        self.total, self.in_a_row = state["total"], state["in_a_row"]

    def check(self, config: TrainingConfig, step: int, loss_scale: float) -> None:
        """Raise ValueError with a report after too many skips in a row."""
        if self.in_a_row < config.max_skipped_steps:
            return
        raise ValueError(
            f"step {step}: the gradients were not finite in {self.in_a_row} steps in a row "
            f"(precision {config.precision}, loss scale {loss_scale:g}, {self.total} skipped in "
            "all); the last checkpoint is good: resume from it with a smaller "
            "training.learning_rate, or with training.precision=bf16 or fp32"
        )


def update(
    optimizer: torch.optim.AdamW,
    scaler: torch.amp.GradScaler,
    max_grad_norm: float,
    learning_rate: float,
) -> float:
    """Apply the accumulated gradients and clear them; returns their norm before clipping.

    If the norm is not finite, the step is skipped, in any precision, and the loss scale goes
    down. DDP has averaged the gradients, so all ranks see the same norm and decide alike.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    foreach = parameters[0].device.type != "mps"  # Which has no such kernels.
    norm = float(nn.utils.clip_grad_norm_(parameters, max_grad_norm, foreach=foreach))
    if math.isfinite(norm):
        scaler.step(optimizer)
    scaler.update()
    # Zeroed, not dropped: under DDP they are views into its buckets, which None would detach.
    optimizer.zero_grad(set_to_none=False)
    return norm
