"""One trial: a run of `train`, from scratch to the end of its schedule, and its loss held out.

The steps are train/take_step.py's for all arms: the baseline has another model and the optimizer
of that, and nothing else. Nothing is saved on the way; a trial that is killed is run again.
"""

import gc
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.learn.forms import ARMS, WARMUP_SHARE, Form, Settings
from benchmarks.learn.gpt2_shape import GPT2
from benchmarks.learn.plan import Trial
from benchmarks.learn.sets import HELD_OUT, TRAIN
from benchmarks.measure import Json
from shards.format import read_manifest
from shards.reader import open_shards
from train.config import Config
from train.evaluate import count_windows, evaluate
from train.ranks.distributed import join_ranks
from train.ranks.heap import keep_freed_memory
from train.run import Run, build_run, open_checked_sets
from train.settings import load_config
from train.start.ids import fit_model
from train.step.kernels import use_kernels
from train.step.optimizer import make_optimizer
from train.take_step import take_step

EVALUATION_BATCH = 32


def list_settings(form: Form, trial: Trial) -> Settings:
    """All settings of a trial's run, but for its folders."""
    arm = ARMS[trial.arm]
    micro_batch = form.training["training.batch_size_per_device"]
    assert isinstance(micro_batch, int)
    return {
        **form.model,
        "model.max_position_embeddings": form.max_seq_length,
        "data.max_seq_length": form.max_seq_length,
        "training.global_batch_tokens": form.tokens_per_step,
        "training.activation_checkpointing": "none",
        **form.training,
        "training.learning_rate": trial.rate,
        "training.warmup_steps": round(WARMUP_SHARE * trial.steps),
        "training.num_training_steps": trial.steps,
        # What a run that diverges does is its result.
        "training.max_skipped_steps": trial.steps + 1,
        "infrastructure.seed": trial.seed,
        **arm.settings,
    }


def describe_trial(form: Form, trial: Trial, work: Path) -> Json:
    """All that a trial's loss depends on, but for the code: another of these is another trial."""
    sets = {name: read_manifest(work / name).dataset_id for name in (TRAIN, HELD_OUT)}
    return {
        "shape": ARMS[trial.arm].shape,
        "settings": list_settings(form, trial),
        "sets": sets,
        "held_out_windows": form.held_out_windows,
    }


def run_trial(form: Form, trial: Trial, work: Path) -> Json:
    """Run it: its loss (None if that is not finite), and what it took."""
    folders = {"data.shards": work / TRAIN, "infrastructure.output_dir": work / "runs" / trial.name}
    settings = list_settings(form, trial) | folders
    config = load_config(None, [f"{name}={value}" for name, value in settings.items()])
    with built(config, is_gpt2=ARMS[trial.arm].shape == "gpt2") as run:
        cpu, wall = time.process_time(), time.perf_counter()
        while run.step < trial.steps:
            loss = take_step(run).loss
            if run.step == 1:
                keep_freed_memory(run.rank.device)
        took = {
            "cpu_seconds": round(time.process_time() - cpu, 2),
            "seconds": round(time.perf_counter() - wall, 2),
        }
        return {
            "loss": finite(measure_held_out(form, run, work)),
            "last_training_loss": finite(loss),
            "skipped_steps": run.bad_steps.total,
            "parameters": sum(weight.numel() for weight in run.model.parameters()),
            "block_parameters": count_block_parameters(run),
            **took,
        }


@contextmanager
def built(config: Config, is_gpt2: bool) -> Iterator[Run]:
    """The run before its first step; with GPT-2's shape, its model in place of ours."""
    with join_ranks(config.distributed) as rank, use_kernels(config, rank.device):
        sets = open_checked_sets(config)
        config = fit_model(config, sets.first.folder, sets.first.manifest)
        run = build_run(config, rank, sets, lambda line: None)
        if is_gpt2:
            torch.manual_seed(config.infrastructure.seed)
            model = GPT2(config.model).to(rank.device)
            run.model = run.parallel_model = model  # type: ignore[assignment]
            run.optimizer = make_optimizer(model, config.training, rank)
        try:
            yield run
        finally:
            run.batches.close()
            run.saver.close()
            gc.collect()


def measure_held_out(form: Form, run: Run, work: Path) -> float:
    """The mean loss of the first windows of the set that is held out."""
    stream = open_shards(work / HELD_OUT).stream("train")
    num_windows = count_windows(stream, form.max_seq_length, form.held_out_windows)
    run.model.eval()
    batch = min(EVALUATION_BATCH, num_windows)
    loss = evaluate(
        run.model,
        *(stream, num_windows, batch, form.max_seq_length, run.rank, run.autocast),
        is_stopping=lambda: False,
    )
    if loss is None:
        raise ValueError(f"{work / HELD_OUT}: has no window of {form.max_seq_length} tokens")
    return loss[0]


def count_block_parameters(run: Run) -> int:
    """The weights of the blocks, with their norms."""
    blocks = run.model.h if isinstance(run.model, GPT2) else run.model.model.layers
    return sum(weight.numel() for weight in blocks.parameters())


def finite(loss: float) -> float | None:
    """The loss, or None where it is no number that JSON has."""
    return loss if math.isfinite(loss) else None
