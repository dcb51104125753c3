"""Two passes before a resumed run's optimizer is loaded, so that its memory fits where it did.

DDP arranges its buckets anew after the first backward pass, and holds the gradients twice while it
does. A fresh run has no moments yet when that happens. A resumed one would have them, and its first
step would need the gradients' bytes more than any other: out of memory where the run had fitted.
"""

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from train.config import Config
from train.step.precision import Autocast

# The buckets of the first pass are arranged anew before the second one's forward pass.
PASSES = 2


def warm_up(
    parallel_model: nn.Module, config: Config, device: torch.device, autocast: Autocast
) -> None:
    """Let DDP arrange its buckets, by passes whose gradients are thrown away."""
    if not isinstance(parallel_model, DistributedDataParallel):
        return
    shape = (config.training.micro_batch, config.data.max_seq_length)
    tokens = torch.zeros(shape, dtype=torch.int64, device=device)
    for _ in range(PASSES):
        with autocast():
            loss = parallel_model(tokens, tokens, 1.0)
        loss.backward()
    parallel_model.zero_grad(set_to_none=False)
