"""Learning preferences: the loss of a micro-batch of pairs, by the model and its reference."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.config import Config
from train.preferences.dpo import METRICS, compute_dpo
from train.preferences.pairs import find_pairs
from train.preferences.reference import Reference


@dataclass(frozen=True)
class Preferences:
    """What a run that learns preferences minimizes."""

    reference: Reference
    beta: float
    smoothing: float

    # What `lose` gives besides the loss.
    metrics = METRICS

    def lose(self, model: nn.Module, tokens: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of the pairs in tokens (B, T), and the metrics: (7,).

        The loss alone has a gradient, and their sum the same.
        """
        before = self.reference.lose(tokens, targets)
        return self._compare(model(tokens, targets, None), before, labels)

    @torch.no_grad()
    def lose_rows(
        self, model: nn.Module, tokens: Tensor, targets: Tensor, labels: Tensor
    ) -> Tensor:
        """The mean loss of the pairs in each row of tokens (B, T): (B,)."""
        before = self.reference.lose(tokens, targets)
        parts = (model(tokens, targets, None), before, labels)
        rows = zip(*(part.split(1) for part in parts), strict=True)
        return torch.stack([self._compare(*row)[0] for row in rows])

    def _compare(self, losses: Tensor, before: Tensor, labels: Tensor) -> Tensor:
        return compute_dpo(losses, before, find_pairs(labels), self.beta, self.smoothing)


def learn_preferences(config: Config, reference: Reference) -> Preferences:
    """Preferences as the settings say they are learned."""
    training = config.training
    return Preferences(reference, training.dpo_beta, training.dpo_label_smoothing)
