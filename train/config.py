"""All settings of a run and their defaults. Keys are those of the original VelocityLM.

A default is written once, at its field; train/settings.py reads what overrides it.
"""

import typing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from model.config import ModelConfig
from shards.config import DataConfig, TokenizerConfig
from shards.screen.url import refuse_url

Precision = Literal["fp16", "bf16", "fp32"]
ActivationCheckpointing = Literal["none", "selective", "full", "auto"]

# A step's tokens are in memory as a whole; no rank has use for more.
MAX_STEP_TOKENS = 2**30
# More than any run has; all that is computed from it stays within 64 bits.
MAX_STEPS = 10**9


@dataclass(frozen=True)
class TrainingConfig:
    """Section `training`: optimization, and how often to log, save and evaluate."""

    # Samples per micro-step on each rank.
    batch_size_per_device: int = 4
    # Micro-steps per step; a step takes batch x accumulation x ranks samples.
    gradient_accumulation_steps: int = 8
    # Peak learning rate of the cosine cycles.
    learning_rate: float = 6e-4
    # Lowest learning rate of the cosine cycles.
    min_learning_rate: float = 6e-5
    # Steps of linear warmup from 0 to the peak.
    warmup_steps: int = 2000
    # Steps of the first cosine cycle after warmup; null = three cycles fill num_training_steps.
    cycle_steps: int | None = None
    # Each cycle is this many times as long as the one before.
    cycle_multiplier: int = 2
    # Steps in the whole run.
    num_training_steps: int = 100_000
    # Weight decay of matrices and embeddings; norms have none.
    weight_decay: float = 0.1
    # AdamW's decay rate for the mean gradient.
    adam_beta1: float = 0.9
    # AdamW's decay rate for the mean squared gradient.
    adam_beta2: float = 0.95
    # Added to AdamW's denominator.
    adam_epsilon: float = 1e-8
    # Gradients are clipped to this global norm.
    max_grad_norm: float = 1.0
    # fp16 with dynamic loss scaling, bf16, or fp32; weights and optimizer state are always fp32.
    precision: Precision = "fp16"
    # Stop with a report after this many steps in a row without finite gradients.
    max_skipped_steps: int = 50
    # What blocks compute again in the backward pass, to save memory: none; selective = what is
    # cheap (compiled: what activation_memory_budget leaves out); full = all; auto = as little as
    # the memory allows. The original's gradient_checkpointing: true is full, false none.
    activation_checkpointing: ActivationCheckpointing = "full"
    # With selective and compiled blocks: the share of the activations to keep, from 0 to 1.
    activation_memory_budget: float = 0.5
    # Run torch.compile on each block; null = on GPUs only.
    compile: bool | None = None
    # Steps between log entries.
    logging_steps: int = 10
    # Steps between progress lines that stay on a terminal; a file has one for each log entry.
    progress_steps: int = 100
    # Steps between checkpoints.
    save_steps: int = 1000
    # Steps between evaluations of the validation loss.
    eval_steps: int = 500
    # Windows of the validation split used for the validation loss.
    eval_windows: int = 256
    # Checkpoints to keep; the oldest are removed.
    save_total_limit: int = 5
    # Steps between checkpoints that are never removed, saved besides the others; null = none.
    keep_every_steps: int | None = None
    # Never remove the checkpoint with the lowest validation loss, of those saved at a step at which
    # it is taken.
    keep_best: bool = False
    # Seconds that a stop signal leaves: a save that is known to take longer is not begun; null = as
    # long as it takes.
    stop_seconds: float | None = None

    def __post_init__(self) -> None:
        at_least_one = (
            "batch_size_per_device",
            "gradient_accumulation_steps",
            "cycle_multiplier",
            "num_training_steps",
            "max_skipped_steps",
            "logging_steps",
            "progress_steps",
            "save_steps",
            "eval_steps",
            "save_total_limit",
        )
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}; expected at least 1")
        if self.num_training_steps > MAX_STEPS:
            raise ValueError(
                f"training.num_training_steps is {self.num_training_steps}; expected at most "
                f"{MAX_STEPS:,}"
            )
        for name in ("cycle_steps", "keep_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"training.{name} is {value}; expected at least 1")
        if self.stop_seconds is not None and not self.stop_seconds >= 0:
            raise ValueError(f"training.stop_seconds is {self.stop_seconds}; expected at least 0")
        if self.keep_best and self.eval_windows == 0:
            raise ValueError(
                "training.keep_best goes by the validation loss, which training.eval_windows=0 "
                "does not take; set one of them otherwise"
            )
        if not 0 <= self.min_learning_rate <= self.learning_rate:
            raise ValueError(
                f"training.min_learning_rate is {self.min_learning_rate}; expected a number from 0 "
                f"to training.learning_rate={self.learning_rate}"
            )
        for name in ("warmup_steps", "eval_windows", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"training.{name} is {getattr(self, name)}; expected at least 0")
        for name in ("max_grad_norm", "adam_epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"training.{name} is {getattr(self, name)}; expected a number above 0"
                )
        if not 0 <= self.activation_memory_budget <= 1:
            raise ValueError(
                f"training.activation_memory_budget is {self.activation_memory_budget}; expected a "
                "number from 0 to 1"
            )
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"training.{name} is {getattr(self, name)}; expected a number from 0 to below 1"
                )


@dataclass(frozen=True)
class InfrastructureConfig:
    """Section `infrastructure`: where files go, and the random seed."""

    # Random seed for the initial weights and the sample order.
    seed: int = 42
    # Folder for checkpoints: output_dir/checkpoint-<step>.
    output_dir: str = "checkpoints/"
    # Folder for metrics.jsonl and TensorBoard's files; null = output_dir/logs.
    logging_dir: str | None = None
    # "auto" = the newest complete checkpoint in output_dir, or from scratch if there is none; a
    # path = the checkpoint to start from, where output_dir has none that does not come from it;
    # null = from scratch.
    resume_from_checkpoint: str | None = "auto"

    def __post_init__(self) -> None:
        for name in ("output_dir", "logging_dir", "resume_from_checkpoint"):
            refuse_url(getattr(self, name) or "", f"infrastructure.{name}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"infrastructure.seed is {self.seed}; expected 0 to 2**63 - 1")

    @property
    def log_folder(self) -> Path:
        """The folder of metrics.jsonl and TensorBoard's files."""
        return Path(self.output_dir, "logs") if self.logging_dir is None else Path(self.logging_dir)


@dataclass(frozen=True)
class DistributedConfig:
    """Section `distributed`: what the ranks compute on, and how they communicate."""

    # "auto" = a GPU for each rank, else for a single rank Apple's GPU (mps), else the CPU.
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    # "auto" = nccl on GPUs, gloo on CPUs.
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    # After how long without any progress a run of several ranks ends, in seconds, while it starts,
    # compiles, or the first rank saves.
    start_timeout_seconds: int = 7200
    # The same for a micro-step or a batch of an evaluation, after the first step.
    step_timeout_seconds: int = 600

    def __post_init__(self) -> None:
        for name in ("start_timeout_seconds", "step_timeout_seconds"):
            if getattr(self, name) < 1:
                raise ValueError(f"distributed.{name} is {getattr(self, name)}, must be at least 1")


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
        training = self.training
        samples = training.batch_size_per_device * training.gradient_accumulation_steps
        if samples * self.data.max_seq_length > MAX_STEP_TOKENS:
            raise ValueError(
                f"training.batch_size_per_device={training.batch_size_per_device:,} x "
                f"training.gradient_accumulation_steps={training.gradient_accumulation_steps:,} x "
                f"data.max_seq_length={self.data.max_seq_length:,} are more tokens a step than a "
                f"rank can hold; expected at most {MAX_STEP_TOKENS:,}"
            )


SECTIONS: dict[str, type] = {entry.name: typing.cast(type, entry.type) for entry in fields(Config)}
