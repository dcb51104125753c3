"""The tree of settings and its defaults. Keys are the original VelocityLM's.

A default is written once, at its field; train/settings.py reads what changes it.
"""

import typing
from dataclasses import dataclass, field, fields
from typing import Literal

from model.config import ModelConfig
from shards.config import DataConfig, TokenizerConfig

Precision = Literal["fp16", "bf16", "fp32"]


@dataclass(frozen=True)
class TrainingConfig:
    """Section `training`: the optimization and how often to log, save and evaluate."""

    # Sequences of a micro-step on each rank.
    batch_size_per_device: int = 4
    # Micro-steps of a step; a step's samples are batch x accumulation x ranks.
    gradient_accumulation_steps: int = 8
    # Peak of the cosine cycles.
    learning_rate: float = 6e-4
    # Floor of the cosine cycles.
    min_learning_rate: float = 6e-5
    # Linear warmup from 0 to the peak.
    warmup_steps: int = 2000
    # First cosine cycle after the warmup; null = three cycles fill num_training_steps.
    cycle_steps: int | None = None
    # Each cycle is so many times as long as the one before it.
    cycle_multiplier: int = 2
    # Steps of the whole run.
    num_training_steps: int = 100_000
    # Decay of matrices and embeddings; norms have none.
    weight_decay: float = 0.1
    # AdamW's decay of the mean gradient.
    adam_beta1: float = 0.9
    # AdamW's decay of the mean squared gradient.
    adam_beta2: float = 0.95
    # Added to AdamW's denominator.
    adam_epsilon: float = 1e-8
    # Gradients are clipped to this global norm.
    max_grad_norm: float = 1.0
    # fp16 with dynamic loss scaling, bf16, or fp32; weights and optimizer are always fp32.
    precision: Precision = "fp16"
    # Stop with a report after so many steps in a row without finite gradients.
    max_skipped_steps: int = 50
    # Recompute each block's activations in the backward pass.
    gradient_checkpointing: bool = True
    # torch.compile of each block; null = on GPU only.
    compile: bool | None = None
    # Log every so many steps.
    logging_steps: int = 10
    # Save a checkpoint every so many steps.
    save_steps: int = 1000
    # Take the validation loss every so many steps.
    eval_steps: int = 500
    # Windows of the validation split that the validation loss is taken over.
    eval_windows: int = 256
    # Checkpoints that are kept, newest first.
    save_total_limit: int = 5

    def __post_init__(self) -> None:
        at_least_one = (
            "batch_size_per_device",
            "gradient_accumulation_steps",
            "cycle_multiplier",
            "num_training_steps",
            "max_skipped_steps",
            "logging_steps",
            "save_steps",
            "eval_steps",
            "save_total_limit",
        )
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}; expected at least 1")
        if self.cycle_steps is not None and self.cycle_steps < 1:
            raise ValueError(f"training.cycle_steps is {self.cycle_steps}; expected at least 1")
        if not 0 <= self.min_learning_rate <= self.learning_rate:
            raise ValueError(
                f"training.min_learning_rate is {self.min_learning_rate}; expected a number from 0 "
                f"to training.learning_rate={self.learning_rate}"
            )
        for name in ("warmup_steps", "eval_windows", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"training.{name} is {getattr(self, name)}; expected at least 0")
        if self.max_grad_norm <= 0:
            raise ValueError(
                f"training.max_grad_norm is {self.max_grad_norm}; expected a number above 0"
            )


@dataclass(frozen=True)
class InfrastructureConfig:
    """Section `infrastructure`: where things go, and the seed of all that is random."""

    # Decides the initial weights and the order of the samples.
    seed: int = 42
    # Checkpoints: output_dir/checkpoint-<step>.
    output_dir: str = "checkpoints/"
    # metrics.jsonl and TensorBoard's files.
    logging_dir: str = "logs/"
    # "auto" = the newest complete checkpoint in output_dir, or a start from scratch where there
    # is none; a path = the checkpoint to start from while output_dir has none; null = from scratch.
    resume_from_checkpoint: str | None = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"infrastructure.seed is {self.seed}; expected 0 to 2**63 - 1")


@dataclass(frozen=True)
class DistributedConfig:
    """Section `distributed`."""

    # "auto" = nccl on GPUs, gloo on CPUs.
    backend: Literal["auto", "nccl", "gloo"] = "auto"


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    infrastructure: InfrastructureConfig = field(default_factory=InfrastructureConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        if self.data.max_seq_length > self.model.max_position_embeddings:
            raise ValueError(
                f"data.max_seq_length is {self.data.max_seq_length}; the model's context, "
                f"model.max_position_embeddings={self.model.max_position_embeddings}, "
                "must be at least as long"
            )


SECTIONS: dict[str, type] = {entry.name: typing.cast(type, entry.type) for entry in fields(Config)}
