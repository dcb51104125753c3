"""All settings of a run and their defaults. Keys are those of the original VelocityLM.

A default is written once, at its field; train/settings.py reads what overrides it.
"""

import typing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from model.config import ModelConfig
from shards.mixture.entries import Entry
from shards.screen.names import quote
from shards.screen.url import refuse_url
from shards.where.condition import parse_condition
from train.training_config import TrainingConfig

Verify = Literal["open", "first-read", "off"]
Compression = Literal["none", "fp16", "bf16"]
DataAttention = Literal["window", "document"]
# A step's tokens are in memory as a whole; no rank has use for more.
MAX_STEP_TOKENS = 2**30
# In fp32, of each parameter.
NUMBER_BYTES = 4


@dataclass(frozen=True)
class DataConfig:
    """Section `data` of a run's settings."""

    # Folder of the shards that `velocity prep --out` wrote.
    shards: str = "shards/"
    # Several sets in place of that one, each with its weight: a mapping, such as
    # {web/: 0.7, code/: 0.3}, or a list of {shards: web/, weight: 0.7}, each of which may have a
    # where of its own; null = the set in shards.
    mixture: tuple[Entry, ...] | None = None
    # Tokens that one sample feeds to the model; a window is one token longer. auto = the rows
    # of a packed set.
    max_seq_length: int = 2048
    # Train only on the documents that meet this condition on their columns, such as
    # "num_tokens >= 100 and 'wikipedia.org' in url", as if the train split had no others; null = on
    # all. The validation split is read whole.
    where: str | None = None
    # What a token sees: "window" = all tokens before it in its window; "document" = those of its
    # own document alone, and positions begin anew with each document. A run that reads a set of
    # chats always has "document".
    attention: DataAttention = "window"
    # Damage in the shards ends the run: "first-read" compares each MiB with its checksum the first
    # time it is read, beside training; "open" hashes all shards before the first step; "off" = only
    # ids outside the vocabulary are noticed.
    verify: Verify = "first-read"

    def __post_init__(self) -> None:
        refuse_url(self.shards)
        if self.where is not None:
            parse_condition(self.where)
            if self.mixture is not None:
                raise ValueError(
                    "data.where is for the one set of data.shards; with data.mixture, give the "
                    "entries that it is for a where of their own"
                )
        if self.max_seq_length < 0:
            raise ValueError(
                f"data.max_seq_length is {self.max_seq_length}; expected at least 1 token, or auto"
            )

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The sets that the run reads, with their weights; one alone has them all."""
        return self.mixture or (Entry(self.shards, 1.0, self.where),)

    @property
    def checks_first_reads(self) -> bool:
        """Whether each MiB is compared with its checksum the first time it is read."""
        return self.verify == "first-read"


@dataclass(frozen=True)
class TokenizerConfig:
    """Section `tokenizer` of a run's settings."""

    # The original's name for its tokenizer. A run takes that of its set, which `velocity prep
    # --tokenizer` chose.
    tokenizer_name: str = "gpt2"
    # End each document with the end-of-document token; must be true.
    add_special_tokens: bool = True

    def __post_init__(self) -> None:
        if self.tokenizer_name != "gpt2":
            raise ValueError(
                f"tokenizer.tokenizer_name is {self.tokenizer_name!r}; leave it out: a run takes "
                "its set's tokenizer, which velocity prep --tokenizer chooses"
            )
        if not self.add_special_tokens:
            raise ValueError(
                "tokenizer.add_special_tokens is false; shards always end a document with its "
                "end token, so set it to true or leave it out"
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
        if not self.model.is_open and self.data.max_seq_length > self.model.context:
            raise ValueError(
                f"data.max_seq_length is {self.data.max_seq_length}; the model's context, "
                f"model.max_position_embeddings={self.model.max_position_embeddings}, "
                f"must be at least as long{self._hint_convert()}"
            )
        self._check_adapter()
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

    def _hint_convert(self) -> str:
        """How a folder's context is made longer, if the weights are a folder's."""
        if self.model.start is None:
            return ""
        return (
            f"; make it so with: velocity convert {quote(self.model.start)} NEW --context "
            f"{self.data.max_seq_length}, and set model.start to NEW; or, for chats, prepare rows "
            f"that the model can read: velocity prep --chat --pack-tokens {self.model.context}"
        )

    def _check_adapter(self) -> None:
        kind = self.training.adapter
        if kind is not None and self.model.start is None:
            raise ValueError(
                f"training.adapter is {kind}, and model.start names no model that it is for; set "
                "model.start to a checkpoint or to another model's folder"
            )
        if kind is not None and self.distributed.strategy == "fsdp":
            raise ValueError(
                f"training.adapter is {kind}, which needs distributed.strategy=ddp: what is cut up "
                "under fsdp, gradients and moments, is small for an adapter"
            )

    def _check_global_batch(self, num_tokens: int) -> None:
        length = self.data.max_seq_length or 1  # 1 where that is not known yet.
        if 0 < num_tokens <= MAX_STEP_TOKENS and num_tokens % length == 0:
            return
        nearest = max(round(min(num_tokens, MAX_STEP_TOKENS) / length), 1) * length
        raise ValueError(
            f"training.global_batch_tokens is {num_tokens:,}; expected a multiple of "
            f"data.max_seq_length={length:,}, at most {MAX_STEP_TOKENS:,}, such as {nearest:,}"
        )

    def samples_per_step(self, num_ranks: int) -> int:
        """Samples per step over so many ranks; after a batch warmup, if there is one."""
        if self.training.global_batch_tokens is not None:
            return self.training.global_batch_tokens // self.data.max_seq_length
        return self.training.micro_batch * self.training.micro_steps * num_ranks

    def list_batches(self, num_ranks: int) -> list[tuple[int, int]]:
        """The stages of the batch warmup: from which step on a step has how many samples.

        >>> training = TrainingConfig(batch_warmup_steps=100, batch_warmup_doublings=2)
        >>> Config(training=training).list_batches(num_ranks=2)
        [(0, 16), (50, 32), (100, 64)]
        """
        full = self.samples_per_step(num_ranks)
        steps, doublings = self.training.batch_warmup_steps, self.training.batch_warmup_doublings
        stages = {
            -(-stage * steps // doublings): max(full >> (doublings - stage), 1)
            for stage in range(doublings)
        }
        return sorted((stages | {steps: full}).items())

    def samples_of_step(self, step: int, num_ranks: int) -> int:
        """Samples of step number `step`, counted from 0: a function of the settings alone."""
        return [samples for first, samples in self.list_batches(num_ranks) if first <= step][-1]

    def micro_steps_of(self, num_samples: int, num_ranks: int) -> int:
        """Micro-steps of a step of the batch warmup with so many samples, once they are settled."""
        if num_samples == self.samples_per_step(num_ranks):
            return self.training.micro_steps
        return -(-num_samples // (self.training.micro_batch * num_ranks))

    def count_tokens(self, num_ranks: int) -> int:
        """Tokens that the whole run reads on so many ranks."""
        steps, batches = self.training.num_training_steps, self.list_batches(num_ranks)
        ends = [first for first, _ in batches[1:]] + [steps]
        samples = sum(
            max(min(end, steps) - first, 0) * samples
            for (first, samples), end in zip(batches, ends, strict=True)
        )
        return samples * self.data.max_seq_length

    @property
    def trained_parameters(self) -> int:
        """How many parameters are trained, and saved: an adapter's, or all of the model's.

        Without the rows of new tokens, which are few.
        """
        adapter = self.training.make_adapter()
        return self.model.num_parameters() if adapter is None else adapter.count(self.model)

    def describe_size(self) -> str:
        """How many parameters there are, and which are trained if not all."""
        text = f"{self.model.num_parameters():,} parameters"
        adapter = self.training.make_adapter()
        if adapter is None:
            return text
        trained = f"{self.trained_parameters:,} more of an adapter ({adapter.describe()})"
        return f"{text}, as they are, and {trained}, which are trained"

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer's state: AdamW's two means of what is trained, Muon's one."""
        has_one = self.model.block_matrix_parameters if self.training.optimizer == "muon" else 0
        return NUMBER_BYTES * (2 * self.trained_parameters - has_one)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint."""
        return NUMBER_BYTES * self.trained_parameters + self.optimizer_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of the checkpoints that are kept at the end, and of one that is being written."""
        return (self.training.max_checkpoints + 1) * self.checkpoint_bytes


SECTIONS: dict[str, type] = {entry.name: typing.cast(type, entry.type) for entry in fields(Config)}
