"""Puts a run together: from scratch, or from where a checkpoint left it."""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from model.adapters.files import deal_saved
from model.checkpoints.weights import make_index
from model.transformer import FORWARD_METHODS, Transformer
from shards.inspect.verify import check_shards
from shards.mixture.sets import MixedOrder, Sets, open_sets
from shards.order import find_padding
from shards.reader import Shards
from shards.screen.lines import Say
from shards.tokenizer import load_checked_tokenizer
from train.batches import Batches, Dealing, find_dealing
from train.begin.adapter import describe_run_adapter, find_adapted, put_adapter
from train.begin.shape import Beginning
from train.begin.weights import find_origin, load_weights
from train.chat.files import ChatFormat, describe_run_model, find_chat_format
from train.chat.labels import open_markings
from train.checkpoints.history import History, extend_history
from train.checkpoints.load import restore
from train.checkpoints.position import BEGAN_WITH, OPTIMIZER, Position
from train.checkpoints.resume import Start, agree_on_start
from train.checkpoints.retention import Retention
from train.checkpoints.same_run import check_same_run, describe_samples
from train.checkpoints.saver import Saver
from train.checkpoints.sets import begin_sets, continue_sets, order_samples
from train.checkpoints.snapshot import HostMemory, Snapshot, take_snapshot
from train.checkpoints.state import Parts, collect_moments, describe_state
from train.checkpoints.warm_up import warm_up
from train.config import Config, DataConfig
from train.evaluation.during import Evaluations, open_evaluations
from train.preferences.learn import Preferences, learn_preferences
from train.preferences.reference import open_reference
from train.ranks.distributed import Rank
from train.ranks.strategy import (
    check_compression,
    fill,
    is_sharding,
    shard_model,
    share_model,
)
from train.samples import Sampler, make_sampler
from train.start.blocks import set_up_blocks
from train.start.documents import separate_documents
from train.start.ids import find_length
from train.start.report import check_start
from train.start.settle import settle_config
from train.start.trial import try_on_gpu
from train.step.bad_steps import BadSteps
from train.step.loss_scale import fit_scaler, make_scaler
from train.step.optimizer import make_optimizer
from train.step.precision import Autocast, check_precision, make_autocast


@dataclass
class Run:
    """Everything that a step needs; `step` counts the steps done."""

    config: Config
    rank: Rank
    order: MixedOrder
    # Where it begins or goes on, with the sets that it reads.
    began: Position
    model: Transformer
    # The model as the ranks share it; on one rank, the model itself.
    parallel_model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: Autocast
    batches: Batches
    step: int
    history: History
    bad_steps: BadSteps
    # What else has a state that a checkpoint keeps, by its keys in training_state.json.
    parts: Parts
    saver: Saver
    # Sets and tasks that it is evaluated with on the way.
    evaluations: Evaluations
    # The checkpoint of its own that it goes on from; None = a new run begins.
    start: Path | None = None
    # What it learns, if that is preferences; None = to predict the next token.
    preferences: Preferences | None = None
    # Writes texts on the way; None = none are wanted, or the first rank writes them.
    sampler: Sampler | None = None
    # How checkpoints say that chats are written, on the first rank; None = they do not say.
    chat_format: ChatFormat | None = None

    @property
    def tokens_of_step(self) -> int:
        """Tokens of the step taken last, over all ranks."""
        return self.batches.dealing.samples_per_step * self.config.data.max_seq_length

    def find_dealing(self, step: int) -> Dealing:
        """How step number `step`, counted from 0, is dealt."""
        return find_dealing(self.config, self.rank, step)

    def count_step(self) -> None:
        """One step more is done."""
        samples = self.batches.dealing.samples_per_step
        first = self.batches.consumed - samples
        self.history = extend_history(self.history, self.step, first, samples)
        self.step += 1

    @property
    def position(self) -> Position:
        """How far the run has come, for a checkpoint."""
        consumed = self.batches.consumed
        return replace(self.began, step=self.step, samples_consumed=consumed, history=self.history)

    def take_snapshot(self) -> Snapshot | None:
        """What a checkpoint holds now, on the first rank; all ranks call it together."""
        files = deal_saved(self.model)
        contents: dict[str, bytes] = {}
        if self.rank.is_first:
            state = describe_state(self.config, self.position, self.parts)
            contents = self.model_files | make_index(files) | state
        tensors = files | {OPTIMIZER: collect_moments(self.model, self.optimizer)}
        return take_snapshot(self.step, tensors, contents, self.host_memory)

    @property
    def is_sharded(self) -> bool:
        """Whether each rank has a part of the model only."""
        return isinstance(self.model, FSDPModule)

    @cached_property
    def host_memory(self) -> HostMemory | None:
        """The first rank's memory for snapshots."""
        return HostMemory(self.rank.device) if self.rank.is_first else None

    @cached_property
    def model_files(self) -> dict[str, bytes]:
        """The files beside the weights: made once, as they never change."""
        files = describe_run_model(self.config.model, self.order.sets.first, self.chat_format)
        if self.config.training.adapter is None:
            return files
        origin = self.parts[BEGAN_WITH].state_dict()
        return files | describe_run_adapter(self.config, self.model, origin)

    def save(self) -> None:
        """Begin to save a checkpoint of this step; all ranks call it together."""
        self.saver.begin(self.step, self.take_snapshot)


def build_run(
    config: Config, rank: Rank, sets: Sets, say: Say, beginning: Beginning | None = None
) -> Run:
    """The run that the settings describe, at its beginning or where its checkpoint left it.

    `beginning` is the folder whose weights a new one begins with, where `model.start` names one.
    """
    check_settings(config, sets, rank)
    start = agree_on_start(config.infrastructure, rank, say)
    asked, before = config, start.config if start else None
    config = settle_config(config, before, rank, say)
    if start:
        check_going_on(config, rank, sets, start, say)
    retention = Retention(Path(config.infrastructure.output_dir), config.training)
    rank.do_first(retention.clear_leftovers)
    position = continue_sets(sets, start.position) if start else begin_sets(sets)
    check_start(config, rank, order_samples(sets, position), position.step, say)
    evaluations = open_evaluations(config, sets.first, say)
    model = build_adapted(config, rank, sets.first, beginning, start, say)
    separate_documents(model, config.data, sets.first.manifest)
    preferences = find_preferences(config, rank, sets.first, model, beginning, start)
    autocast = make_autocast(rank.device, config.training.precision)
    config = try_on_gpu(asked, config, before, model, rank, autocast, say)
    optimizer = make_optimizer(model, config.training, rank)
    scaler = make_scaler(rank.device, config.training)
    bad_steps = BadSteps()
    parts: Parts = {"scaler": scaler, "skips": bad_steps, **find_origin(config, rank, beginning)}
    parallel_model = share_model(model, rank, config.distributed)
    if start:
        # In this order, or the first step would take more memory than any other.
        warm_up(parallel_model, config, rank.device, autocast)
        start = restore(config, rank, sets, start, model, optimizer, parts, say)
        fit_scaler(scaler, config.training)
        position = continue_sets(sets, start.position)
        say(f"resuming from {start.path}: step {position.step:,}")
    own_start = start.path if start and start.is_own else None
    rank.do_first(lambda: retention.tidy(own_start))
    order = order_samples(sets, position)
    batches = make_batches(config, rank, order, position)
    per_step = batches.dealing.samples_per_step
    history = extend_history(position.history, position.step, position.samples_consumed, per_step)
    return Run(
        config,
        rank,
        order,
        position,
        model,
        parallel_model,
        optimizer,
        scaler,
        autocast,
        batches,
        position.step,
        history,
        bad_steps,
        parts,
        Saver(rank, retention, position.step, own_start, say),
        evaluations,
        own_start,
        preferences,
        find_sampler(config, rank, sets.first, model, say),
        find_chats(rank, sets, beginning, start, say),
    )


def find_preferences(
    config: Config,
    rank: Rank,
    shards: Shards,
    model: Transformer,
    beginning: Beginning | None,
    start: Start | None,
) -> Preferences | None:
    """What a run learns that learns preferences, with its reference; None for any other."""
    if config.training.objective != "dpo":
        return None
    origin = start.state.get(BEGAN_WITH) if start else None
    build = partial(build_model, config, rank)
    reference = open_reference(config, rank, model, shards, beginning, origin, build)
    return learn_preferences(config, reference)


def find_chats(
    rank: Rank, sets: Sets, beginning: Beginning | None, start: Start | None, say: Say
) -> ChatFormat | None:
    """How the model of a run writes chats, on the first rank; None if nothing says so."""
    before = start.path if start else beginning.folder if beginning else None
    return rank.do_first(lambda: find_chat_format(sets, before, say))


def check_going_on(config: Config, rank: Rank, sets: Sets, start: Start, say: Say) -> None:
    """Say what a run does otherwise than before; ValueError if it cannot go on from there."""
    check_same_run(config, sets, start, say)
    if changed := describe_samples(config, rank.world_size, start):
        say(changed)


def find_sampler(
    config: Config, rank: Rank, shards: Shards, model: Transformer, say: Say
) -> Sampler | None:
    """What writes texts on this rank; None if none are wanted, or the first rank writes them."""
    if not config.training.sample_steps:
        return None
    if isinstance(model, FSDPModule):
        return make_sampler(config, shards, model, say)
    return rank.do_first(lambda: make_sampler(config, shards, model, say))


def open_checked_sets(config: Config) -> Sets:
    """The run's sets; ValueError if they, or their tokenizers, are not what they were."""
    sets = open_sets(config.data.entries, find_length(config), config.infrastructure.seed)
    for source in sets.sources:
        load_checked_tokenizer(source.shards.folder, source.shards.manifest)
    return sets


def check_settings(config: Config, sets: Sets, rank: Rank) -> None:
    """Raise ValueError for what the device cannot do, and for damage, if that is looked for."""
    check_precision(rank.device, config.training.precision)
    check_compression(config.distributed, rank)
    check_all_shards(config.data, sets, rank)


def check_all_shards(data: DataConfig, sets: Sets, rank: Rank) -> None:
    """Hash the shards of all sets, if that is asked for, dealt out over the ranks.

    Raises ValueError for damage.
    """
    for source in sets.sources if data.verify == "open" else ():
        manifest = source.shards.manifest
        own = manifest.shards[rank.rank :: rank.world_size]
        check_shards(source.shards.folder, manifest, own)


def build_adapted(
    config: Config,
    rank: Rank,
    shards: Shards,
    beginning: Beginning | None,
    start: Start | None,
    say: Say,
) -> Transformer:
    """The run's model; where an adapter is trained, that of the folder with the adapter on it."""
    folder = find_adapted(config, rank, shards, beginning, start)
    model = build_model(config, rank, folder)
    put_adapter(model, config, shards, folder, say)
    return model


def build_model(config: Config, rank: Rank, beginning: Beginning | None = None) -> Transformer:
    """A new model on this rank's device: all of it, or this rank's part.

    Its weights are made from the seed, or those of the folder that the run begins with.
    """
    torch.manual_seed(config.infrastructure.seed)
    is_part = is_sharding(config.distributed, rank)
    with torch.device("meta") if is_part else rank.device:
        model = Transformer(config.model)
    if is_part:
        shard_model(model, model.model.layers, FORWARD_METHODS, rank, config.distributed)
        fill(model, model.draw_weights(rank.device), rank)
        model.tie_head()
    if beginning:
        load_weights(beginning, rank, model)
    set_up_blocks(model, config, rank)
    return model.train()


def make_batches(config: Config, rank: Rank, order: MixedOrder, position: Position) -> Batches:
    """This rank's share of the samples after those already consumed."""
    stream = order.sets.stream(config.data.checks_first_reads)
    dealing, consumed = find_dealing(config, rank, position.step), position.samples_consumed
    padding, marking = find_padding(order.sets.first.manifest), open_markings(order.sets)
    return Batches(stream, order, dealing, rank.device, consumed, padding, marking)
