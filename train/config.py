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
OnBadStep = Literal["warn", "skip", "rollback"]
Compression = Literal["none", "fp16", "bf16"]
ActivationCheckpointing = Literal["none", "selective", "full", "auto"]
AttentionKernel = Literal["auto", "flash", "cudnn", "efficient", "math", "fa3"]

# Where torch's GradScaler begins.
FIRST_LOSS_SCALE = 2.0**16

# A step's tokens are in memory as a whole; no rank has use for more.
MAX_STEP_TOKENS = 2**30
# Micro-steps of a step whose settings name neither them nor its tokens, as in the original.
DEFAULT_MICRO_STEPS = 8
# More than any run has; all that is computed from it stays within 64 bits.
MAX_STEPS = 10**9
# Losses are kept in every checkpoint, and gone through at each step.
MAX_SPIKE_WINDOW = 10_000


@dataclass(frozen=True)
class TrainingConfig:
    """Section `training`: optimization, and how often to log, save and evaluate."""

    # Tokens per step over all ranks, whatever their number; null = batch x accumulation x ranks
    # samples.
    global_batch_tokens: int | None = None
    # Samples per micro-step on each rank, at most; "auto" = as many as fit, with
    # global_batch_tokens.
    batch_size_per_device: int | Literal["auto"] = 4
    # Micro-steps per step; "auto" = as many as global_batch_tokens needs, or 8 without it.
    gradient_accumulation_steps: int | Literal["auto"] = "auto"
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
    # The fp16 loss scale is never halved below this; an overflow there still skips the step.
    min_loss_scale: float = 1.0
    # Steps without an overflow after which the fp16 loss scale is doubled.
    loss_scale_growth_interval: int = 2000
    # Stop with a report after this many steps in a row that were not applied to the weights.
    max_skipped_steps: int = 50
    # What to do about a step with a bad loss, one that is not finite or a spike: "warn" = say so;
    # "skip" = also leave the weights as they are; "rollback" = go back to the newest checkpoint
    # that is spike_window steps older, and pass over all samples since.
    on_bad_step: OnBadStep = "warn"
    # A loss is compared with as many before it; half of them are enough.
    spike_window: int = 128
    # A loss is a spike this many standard deviations above the mean of the window; null = never.
    spike_threshold: float | None = 6.0
    # Stop with a report after this many rollbacks without getting beyond the bad step.
    max_rollbacks: int = 3
    # Log the largest |x| of the residual stream behind the blocks, at steps that are logged.
    log_activations: bool = False
    # What blocks compute again in the backward pass, to save memory: none; selective = what is
    # cheap (compiled: what activation_memory_budget leaves out); full = all; auto = as little as
    # the memory allows. The original's gradient_checkpointing: true is full, false none.
    activation_checkpointing: ActivationCheckpointing = "full"
    # With selective and compiled blocks: the share of the activations to keep, from 0 to 1.
    activation_memory_budget: float = 0.5
    # What computes attention: auto = on Hopper GPUs FlashAttention 3 where flash_attn_interface is
    # installed, else cuDNN, elsewhere torch's choice; the run says which it is.
    attention: AttentionKernel = "auto"
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
    # Steps between texts that the model writes into samples.jsonl of the log; null = none.
    sample_steps: int | None = None
    # A file with a prompt for such a text on each line, an empty one for the beginning of a
    # document; null = four built-in ones.
    sample_prompts: str | None = None
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
            "loss_scale_growth_interval",
            "max_rollbacks",
            "logging_steps",
            "progress_steps",
            "save_steps",
            "eval_steps",
            "save_total_limit",
        )
        for name in at_least_one:
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ValueError(f"training.{name} is {value}; expected at least 1")
        if self.num_training_steps > MAX_STEPS:
            raise ValueError(
                f"training.num_training_steps is {self.num_training_steps}; expected at most "
                f"{MAX_STEPS:,}"
            )
        for name in ("cycle_steps", "keep_every_steps", "sample_steps"):
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
        self._check_bad_steps()
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"training.{name} is {getattr(self, name)}; expected a number from 0 to below 1"
                )

    @property
    def micro_batch(self) -> int:
        """Samples per micro-step on a rank, as a number, once it is settled."""
        assert self.batch_size_per_device != "auto", "train/start/settle.py has not chosen it"
        return self.batch_size_per_device

    @property
    def micro_steps(self) -> int:
        """Micro-steps per step, as a number; with global_batch_tokens, once they are settled."""
        if self.gradient_accumulation_steps != "auto":
            return self.gradient_accumulation_steps
        assert self.global_batch_tokens is None, "train/start/batch.py has not settled them"
        return DEFAULT_MICRO_STEPS

    def _check_bad_steps(self) -> None:
        if not 0 <= self.min_loss_scale <= FIRST_LOSS_SCALE:
            raise ValueError(
                f"training.min_loss_scale is {self.min_loss_scale}; expected a number from 0 to "
                f"{FIRST_LOSS_SCALE:g}, where the loss scale begins"
            )
        if not 2 <= self.spike_window <= MAX_SPIKE_WINDOW:
            raise ValueError(
                f"training.spike_window is {self.spike_window}; expected 2 to {MAX_SPIKE_WINDOW:,}"
            )
        if self.spike_threshold is not None and not self.spike_threshold > 0:
            raise ValueError(
                f"training.spike_threshold is {self.spike_threshold}; expected a number above 0, "
                "or null"
            )
        oldest = self.save_steps * (self.save_total_limit - 1)
        if self.on_bad_step == "rollback" and oldest < self.spike_window:
            raise ValueError(
                f"training.on_bad_step=rollback needs a checkpoint from before the "
                f"{self.spike_window} steps of training.spike_window; of training.save_steps="
                f"{self.save_steps} x training.save_total_limit={self.save_total_limit} the oldest "
                f"is {oldest} steps old just after a save; set more of one of the two"
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
    # ddp = the whole model on every rank; fsdp = a part of every weight on each, for models that
    # are too large for one GPU.
    strategy: Literal["ddp", "fsdp"] = "ddp"
    # The ranks send each other gradients as fp16, or by NCCL bf16: half the bytes, less exact.
    gradient_compression: Compression = "none"
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
        if self.training.global_batch_tokens is not None:
            self._check_global_batch(self.training.global_batch_tokens)
            return
        if self.training.batch_size_per_device == "auto":
            raise ValueError(
                "training.batch_size_per_device is auto, but training.global_batch_tokens is null; "
                "say how many tokens a step takes, for instance training.global_batch_tokens="
                f"{256 * self.data.max_seq_length}"
            )
        micro_batch, micro_steps = self.training.micro_batch, self.training.micro_steps
        if micro_batch * micro_steps * self.data.max_seq_length > MAX_STEP_TOKENS:
            raise ValueError(
                f"training.batch_size_per_device={micro_batch:,} x "
                f"training.gradient_accumulation_steps={micro_steps:,} x "
                f"data.max_seq_length={self.data.max_seq_length:,} are more tokens a step than a "
                f"rank can hold; expected at most {MAX_STEP_TOKENS:,}"
            )

    def _check_global_batch(self, num_tokens: int) -> None:
        length = self.data.max_seq_length
        if 0 < num_tokens <= MAX_STEP_TOKENS and num_tokens % length == 0:
            return
        nearest = max(round(min(num_tokens, MAX_STEP_TOKENS) / length), 1) * length
        raise ValueError(
            f"training.global_batch_tokens is {num_tokens:,}; expected a multiple of "
            f"data.max_seq_length={length:,}, at most {MAX_STEP_TOKENS:,}, such as {nearest:,}"
        )

    def samples_per_step(self, num_ranks: int) -> int:
        """Samples per step over so many ranks."""
        if self.training.global_batch_tokens is not None:
            return self.training.global_batch_tokens // self.data.max_seq_length
        return self.training.micro_batch * self.training.micro_steps * num_ranks


SECTIONS: dict[str, type] = {entry.name: typing.cast(type, entry.type) for entry in fields(Config)}
