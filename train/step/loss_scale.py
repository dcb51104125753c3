"""FP16's dynamic loss scale: halved when gradients overflow, doubled after a while without."""

import torch
from torch import Tensor

from train.training_config import TrainingConfig


def make_scaler(device: torch.device, config: TrainingConfig) -> torch.amp.GradScaler:
    """Dynamic loss scaling for fp16; does nothing for bf16 and fp32."""
    return torch.amp.GradScaler(
        device.type,
        enabled=config.precision == "fp16",
        growth_interval=config.loss_scale_growth_interval,
    )


def fit_scaler(scaler: torch.amp.GradScaler, config: TrainingConfig) -> None:
    """Give a scaler that was restored from a checkpoint the settings of today."""
    if not scaler.is_enabled():
        return
    state = scaler.state_dict()
    interval = config.loss_scale_growth_interval
    state["scale"] = max(state["scale"], config.min_loss_scale)
    state["growth_interval"] = interval
    # torch doubles the scale when the count is equal to the interval, never once it is above.
    state["_growth_tracker"] = min(state["_growth_tracker"], interval - 1)
    scaler.load_state_dict(state)


def get_scale(scaler: torch.amp.GradScaler, device: torch.device) -> Tensor | float:
    """The scale, 0-dim and on the device: torch's own get_scale waits for it. 1.0 if it is off."""
    return scaler.scale(torch.ones((), device=device)) if scaler.is_enabled() else 1.0


def update_scale(scaler: torch.amp.GradScaler, overflowed: bool, min_scale: float) -> None:
    """Halve the scale after an overflow, but not below `min_scale`, which torch does not have."""
    scaler.update()
    # Its get_scale waits for the GPU: only after an overflow.
    if overflowed and scaler.is_enabled() and scaler.get_scale() < min_scale:
        scaler.update(min_scale)
