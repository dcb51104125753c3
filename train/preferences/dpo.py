"""The loss of direct preference optimization (DPO, Rafailov et al. 2023, eq. 7), and its metrics.

    reward(answer) = beta * (log p(answer | prompt) - log p_reference(answer | prompt))
    loss           = -log sigmoid(reward(chosen) - reward(rejected)), the mean over pairs

log p(answer | prompt) is the sum over the answer's tokens. The metrics have TRL's names.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from train.preferences.pairs import Pairs

# Means over the pairs, besides the loss: the answers' rewards; the share of pairs in which the
# chosen one has more, and how much more; and the answers' log-probabilities.
METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


def compute_dpo(
    losses: Tensor, reference_losses: Tensor, pairs: Pairs, beta: float, smoothing: float = 0.0
) -> Tensor:
    """The loss of a batch's pairs, and METRICS: (7,) in fp32, of which the first has a gradient.

    `losses` are -log p of each target (B, T) by the model, 0 where it is no answer's, and
    `reference_losses` those by the reference. With `smoothing`, the loss of labels of which that
    share is wrong ("conservative DPO", Mitchell 2023). A batch without pairs has zeros.
    """
    chosen, rejected = pairs.add_up(reference_losses - losses)
    margin = beta * (chosen - rejected)
    loss = -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)
    with torch.no_grad():
        # Detached, as the run differentiates the sum of all.
        rewards = beta * chosen, beta * rejected, (margin > 0).float(), margin.detach()
        log_probs = pairs.add_up(-losses)
    each = torch.stack([loss, *rewards, *log_probs])
    return each.where(pairs.is_pair, 0).sum(1) / pairs.count.clamp(min=1)
