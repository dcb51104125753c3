"""Learning preferences: the loss of a micro-batch of pairs, by the model and its reference."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.config import Config
from train.preferences.dpo import METRICS, compute_dpo
from train.preferences.pairs import find_pairs
from train.preferences.reference import Reference
from train.targets import MicroBatch


@dataclass(frozen=True)
class Preferences:
    """What a run that learns preferences minimizes."""

    reference: Reference
    beta: float
    smoothing: float

    # What `lose` gives besides the loss.
    metrics = METRICS

    def lose(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        """The mean loss of the pairs in a batch, and the metrics: (7,).

        Only the loss has a gradient, so their sum has the same.
        """
        return self._compare(*self._lose_both(model, batch))

    @torch.no_grad()
    def lose_rows(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        """The mean loss of the pairs in each row: (B,)."""
        # The model is called once: under fsdp, all ranks call it equally often.
        parts = [torch.split(part, 1) for part in self._lose_both(model, batch)]
        return torch.stack([self._compare(*row)[0] for row in zip(*parts, strict=True)])

    def _lose_both(self, model: nn.Module, batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
        """The losses of targets by the model and by the reference, and the labels: (B, T) each."""
        assert batch.labels is not None, "only sets of preferences are learned from"
        before = self.reference.lose(batch)
        losses = model(batch.tokens, batch.targets, grad_scale=None, firsts=batch.firsts)
        return losses, before, batch.labels

    def _compare(self, losses: Tensor, before: Tensor, labels: Tensor) -> Tensor:
        return compute_dpo(losses, before, find_pairs(labels), self.beta, self.smoothing)


def learn_preferences(config: Config, reference: Reference) -> Preferences:
    """Preferences, as the settings say that they are learned."""
    training = config.training
    return Preferences(reference, training.dpo_beta, training.dpo_label_smoothing)
