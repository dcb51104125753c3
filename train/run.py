"""Puts a run together: from scratch, or from where a checkpoint left it."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from model.checkpoints.folder import load_model, save_model
from model.checkpoints.hugging_face import Boundaries
from model.transformer import Transformer
from shards.disk.layout import TOKENIZER
from shards.edit.versions import keeps_places
from shards.inspect.verify import check_shards
from shards.order import SampleOrder
from shards.reader import Shards, open_shards
from shards.screen.lines import Say
from shards.tokenizer import load_checked_tokenizer, read_tokenizer_json
from train.batches import Batches, Dealing
from train.checkpoints.folder import prune_checkpoints, save_checkpoint, tidy_checkpoints
from train.checkpoints.history import History, extend_history
from train.checkpoints.position import Position, read_position, read_run_config
from train.checkpoints.resume import agree_on_start, is_same_folder
from train.checkpoints.state import restore_state, save_state
from train.config import Config
from train.ranks.distributed import Rank
from train.samples import Sampler, make_sampler
from train.start.report import check_start
from train.step.optimizer import SkipCount, make_optimizer, make_scaler
from train.step.precision import Autocast, check_precision, make_autocast
from train.step.schedule import describe_change


@dataclass
class Run:
    """Everything that a step needs; `step` counts the steps done."""

    config: Config
    rank: Rank
    shards: Shards
    model: Transformer
    # The model as the ranks share it; on one rank, the model itself.
    parallel_model: nn.Module
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    autocast: Autocast
    batches: Batches
    step: int
    history: History
    # The checkpoint that it goes on from; None = it began from scratch.
    start: Path | None = None
    skips: SkipCount = field(default_factory=SkipCount)
    # Writes texts on the way, on the first rank; None = no texts are wanted.
    sampler: Sampler | None = None

    @property
    def tokens_per_step(self) -> int:
        """Tokens per step, over all ranks."""
        return self.batches.dealing.samples_per_step * self.config.data.max_seq_length

    @property
    def position(self) -> Position:
        """How far the run has come, for a checkpoint."""
        dataset_id = self.shards.manifest.dataset_id
        return Position(self.step, self.batches.consumed, self.history, dataset_id)

    @property
    def folder(self) -> Path:
        """Where its checkpoints are."""
        return Path(self.config.infrastructure.output_dir)

    @property
    def is_sharded(self) -> bool:
        """Whether each rank has a part of the model only."""
        return isinstance(self.model, FSDPModule)

    @property
    def is_continued(self) -> bool:
        """Whether it goes on from a checkpoint of its own; otherwise a new run begins."""
        return self.start is not None and is_same_folder(self.start.parent, self.folder)

    def save(self) -> Path:
        """Write a checkpoint, and remove those beyond the limit; returns its path.

        The first rank writes, all wait. If that fails, SaveError there, FirstRankError elsewhere.
        """
        self.rank.do_first(self._save)
        return self.folder / f"checkpoint-{self.step}"

    def _save(self) -> None:
        saved = save_checkpoint(self.folder, self.step, self._fill_checkpoint)
        prune_checkpoints(self.folder, saved, self.config.training.save_total_limit)

    def _fill_checkpoint(self, folder: Path) -> None:
        tokenizer_json = read_tokenizer_json(self.shards.folder / TOKENIZER)
        manifest = self.shards.manifest
        boundaries = Boundaries(manifest.end_of_text, manifest.begin_of_text)
        save_model(folder, self.model, tokenizer_json, boundaries)
        save_state(
            folder, self.config, self.position, self.model, self.optimizer, self.scaler, self.skips
        )


def build_run(config: Config, rank: Rank, shards: Shards, say: Say) -> Run:
    """The run that the settings describe, at its beginning or where its checkpoint left it."""
    check_precision(rank.device, config.training.precision)
    if config.data.verify == "open":
        own = shards.manifest.shards[rank.rank :: rank.world_size]
        check_shards(shards.folder, shards.manifest, own)
    start = agree_on_start(config.infrastructure, rank, say)
    if start:
        check_same_run(config, shards, start, say)
    first_step = read_position(start).step if start else 0
    check_start(config, rank, shards, first_step, say)
    folder, keep = Path(config.infrastructure.output_dir), config.training.save_total_limit
    rank.do_first(lambda: tidy_checkpoints(folder, start, keep))
    model = build_model(config, rank, start)
    optimizer = make_optimizer(model, config.training)
    scaler = make_scaler(rank.device, config.training)
    skips = SkipCount()
    position = Position(0, 0, (), shards.manifest.dataset_id)
    if start:
        position = restore_state(start, model, optimizer, scaler, skips)
        say(f"resuming from {start}: step {position.step:,}")
    batches = make_batches(config, rank, shards, position.samples_consumed)
    per_step = batches.dealing.samples_per_step
    history = extend_history(position.history, position.step, position.samples_consumed, per_step)
    sampler = None
    if config.training.sample_steps and isinstance(model, FSDPModule):
        sampler = make_sampler(config, shards, model, say)
    elif config.training.sample_steps:
        sampler = rank.do_first(lambda: make_sampler(config, shards, model, say))
    return Run(
        config,
        rank,
        shards,
        model,
        share_model(model, rank),
        optimizer,
        scaler,
        make_autocast(rank.device, config.training.precision),
        batches,
        position.step,
        history,
        start,
        skips,
        sampler,
    )


def open_checked_shards(folder: str) -> Shards:
    """The run's shards; ValueError if they, or their tokenizer, are not what they were."""
    shards = open_shards(folder)
    load_checked_tokenizer(shards.folder, shards.manifest)
    return shards


def fit_model(config: Config, shards: Shards) -> Config:
    """The settings with as many ids as the set has; ValueError if they name another number."""
    num_ids = shards.manifest.vocab_size
    model = config.model.fit(num_ids)
    if model.vocab_size != num_ids:
        raise ValueError(
            f"{shards.folder}: its tokenizer has {num_ids} ids, model.vocab_size is "
            f"{model.vocab_size}; set model.vocab_size=auto"
        )
    return replace(config, model=model)


def build_model(config: Config, rank: Rank, start: Path | None) -> Transformer:
    """The model on this rank's device: a checkpoint's, or a new one made from the seed."""
    if start:
        model = load_model(start, rank.device)
    else:
        torch.manual_seed(config.infrastructure.seed)
        with rank.device:
            model = Transformer(config.model)
    checkpointing = config.training.activation_checkpointing
    assert checkpointing != "auto", "it is chosen before the model is built"
    model.activation_checkpointing = checkpointing
    compiles = config.training.compile
    if compiles or (compiles is None and rank.device.type == "cuda"):
        # DDP's graph splits would cut blocks apart; whole, each hands over its gradients when done.
        torch._dynamo.config.optimize_ddp = False
        model.compile_blocks(memory_budget=config.training.activation_memory_budget)
    return model.train()


def share_model(model: Transformer, rank: Rank) -> nn.Module:
    """The model under DDP, which averages the gradients; on one rank, the model itself."""
    if rank.world_size == 1:
        return model
    device_ids = [rank.device] if rank.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)


def make_batches(config: Config, rank: Rank, shards: Shards, consumed: int) -> Batches:
    """This rank's share of the samples after those already consumed."""
    stream = shards.stream("train", config.data.checks_first_reads)
    order = SampleOrder(stream.num_tokens, config.data.max_seq_length, config.infrastructure.seed)
    dealing = Dealing(
        config.training.batch_size_per_device,
        config.training.gradient_accumulation_steps,
        rank.rank,
        rank.world_size,
    )
    return Batches(stream, order, dealing, rank.device, consumed)


def check_same_run(config: Config, shards: Shards, start: Path, say: Say) -> None:
    """Raise ValueError if a fixed setting differs from the checkpoint's; report other changes."""
    before = read_run_config(start)
    fixed = [
        ("data.max_seq_length", before.data.max_seq_length, config.data.max_seq_length),
        ("infrastructure.seed", before.infrastructure.seed, config.infrastructure.seed),
        ("dataset_id", find_own_id(shards, start, say), shards.manifest.dataset_id),
    ]
    for entry in fields(config.model):
        old, new = getattr(before.model, entry.name), getattr(config.model, entry.name)
        fixed.append((f"model.{entry.name}", old, new))
    for name, old, new in fixed:
        if old != new:
            raise ValueError(
                f"{start}: was trained with {name}={old}, now it is {new}; keep it as it was, or "
                "choose another infrastructure.output_dir for a new run"
            )
    old, new = before.infrastructure.log_folder, config.infrastructure.log_folder
    is_own = is_same_folder(start.parent, config.infrastructure.output_dir)
    if is_own and old.is_dir() and not is_same_folder(old, new):
        say(f"the log goes on in {new}; what was logged before is in {old}")
    for entry in fields(config.training):
        old, new = getattr(before.training, entry.name), getattr(config.training, entry.name)
        if old != new:
            say(f"training.{entry.name} was {old}, is now {new}")
    changed = describe_change(before.training, config.training, read_position(start).step)
    if changed:
        say(changed)


def find_own_id(shards: Shards, start: Path, say: Say) -> str:
    """A checkpoint's dataset_id; the set's own if all remaining tokens kept their places.

    The order of samples is then the same, and only what was removed reads as ends of documents.
    """
    dataset_id = read_position(start).dataset_id
    if not keeps_places(shards.folder, shards.manifest, dataset_id):
        return dataset_id
    say(
        f"{shards.folder}: documents were removed since {start} was written (dataset_id "
        f"{dataset_id[:12]} became {shards.manifest.dataset_id[:12]}); every other token kept its "
        "place, so the run continues"
    )
    return shards.manifest.dataset_id
