"""Steps that should not reach the weights: which they are, and how many in a row end a run.

A step is bad if its loss is not finite, or a spike: far above the losses before it, in their own
standard deviations (OLMo's SkipStepOptimizer: 6 of them over 128 steps).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import torch

from train.training_config import TrainingConfig


class Step(NamedTuple):
    """What became of a step; the same on all ranks."""

    # The mean over all ranks.
    loss: float
    # Of the gradients, before they were clipped; NaN if they are not finite.
    norm: float
    # Why its loss is bad, in words; None if it is not.
    bad: str | None
    # Whether the weights were updated.
    is_applied: bool
    rank_losses: list[float]
    # The largest |x| of the residual stream; None if nobody looked.
    largest_activation: float | None
    # What is logged beside the loss, by name, such as the z-loss: means over all ranks.
    details: Mapping[str, float]


@dataclass
class BadSteps:
    """What a run remembers of its losses and of steps that were not applied; in each checkpoint."""

    # Steps whose update was not applied.
    total: int = 0
    in_a_row: int = 0
    # Steps whose loss was bad, whatever became of them.
    bad: int = 0
    # The newest losses, of steps that were applied; as many as training.spike_window.
    losses: list[float] = field(default_factory=list)
    # How often the run went back without getting beyond the furthest step that it went back from.
    rollbacks: int = 0
    furthest_bad: int = 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint has; those of before have only the two counts."""
        for entry in fields(self):
            if entry.name in state:
                setattr(self, entry.name, state[entry.name])

    def judge(self, loss: float, config: TrainingConfig) -> str | None:
        """Why a step with this loss, the mean over all ranks, is bad; None if it is not.

        >>> bad_steps = BadSteps(losses=[2.0, 2.2] * 64)
        >>> bad_steps.judge(2.7, TrainingConfig()) is None
        True
        >>> bad_steps.judge(2.8, TrainingConfig())
        'the loss is 2.8000; it was 2.1000 on average, 0.1004 the deviation, over 128 steps'
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        count = len(self.losses)
        if config.spike_threshold is None or count < max(2, config.spike_window // 2):
            return None
        mean = math.fsum(self.losses) / count
        squares = math.fsum((earlier - mean) ** 2 for earlier in self.losses)
        deviation = math.sqrt(squares / (count - 1))
        if loss <= mean + config.spike_threshold * deviation:
            return None
        return (
            f"the loss is {loss:.4f}; it was {mean:.4f} on average, {deviation:.4f} the "
            f"deviation, over {count} steps"
        )

    def add(self, step: int, loss: float, is_bad: bool, is_applied: bool, window: int) -> None:
        """Count a step. What was not applied is no measure for those that follow."""
        self.bad += is_bad
        self.total += not is_applied
        self.in_a_row = 0 if is_applied else self.in_a_row + 1
        if is_applied and step > self.furthest_bad:
            self.rollbacks = 0
        if is_applied and math.isfinite(loss):
            self.losses = [*self.losses, loss][-window:]

    def check_rollbacks(self, config: TrainingConfig, step: int, reason: str) -> None:
        """Raise ValueError with a report if the run has gone back too often in a row."""
        if self.rollbacks < config.max_rollbacks:
            return
        raise ValueError(
            f"step {step}: went back {self.rollbacks} times in a row without getting beyond step "
            f"{self.furthest_bad}, and the step is bad again ({reason}); resume from the last "
            "checkpoint with a smaller training.learning_rate, or, if such losses are no fault, "
            "with a larger training.spike_threshold"
        )

    def check(
        self,
        config: TrainingConfig,
        step: int,
        reason: str | None,
        scaler: torch.amp.GradScaler,
    ) -> None:
        """Raise ValueError with a report after too many steps in a row that were not applied."""
        if self.in_a_row < config.max_skipped_steps:
            return
        if reason and config.on_bad_step != "warn":
            raise ValueError(
                f"step {step}: {self.in_a_row} steps in a row were not applied ({reason}); the "
                "last checkpoint is good: resume from it with a smaller training.learning_rate, "
                "or, if such losses are no fault, with a larger training.spike_threshold"
            )
        raise ValueError(
            f"step {step}: the gradients were not finite in {self.in_a_row} steps in a row "
            f"(precision {config.precision}, loss scale {scaler.get_scale():g}, {self.total} "
            "skipped in all); the last checkpoint is good: resume from it with a smaller "
            "training.learning_rate, or with training.precision=bf16 or fp32"
        )
