"""The losses of given tokens, and which were the likeliest, without ever holding all logits.

N places in a batch, D hidden, V vocabulary.
"""

import torch
from torch import Tensor

from model.loss import choose_chunk_tokens, differentiate_in_place
from model.transformer import Transformer


@torch.inference_mode()
def score_places(model: Transformer, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The losses (N,) in fp32 of targets (N,) after hidden (N, D), and which were the likeliest.

    The softmax is over all rows of the head, as in training. Raises ValueError for a loss that is
    no number.
    """
    chunk = choose_chunk_tokens(len(targets), model.lm_head.weight)
    losses = torch.empty(len(targets), device=hidden.device)
    is_best = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
    for first in range(0, len(targets), chunk):
        rows = slice(first, first + chunk)
        logits = model.lm_head(hidden[rows]).float()
        is_best[rows] = logits.argmax(-1) == targets[rows]
        losses[rows], _ = differentiate_in_place(logits, targets[rows], None, torch.float32)
    if not losses.isfinite().all():
        raise ValueError(
            "the model's loss is not a number; its weights are not, or the numbers it computes in "
            "are too small for it (try --dtype fp32)"
        )
    return losses, is_best
