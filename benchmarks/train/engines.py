"""What takes turns in `benchmarks.train`, Trainer apart: our run, a bare loop, the matrix rate.

What only one side needs is imported where it is used, so that it takes none of the other's memory.
"""

import argparse
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.measure import Json, say
from benchmarks.train.inputs import (
    find_device,
    load_weights,
    make_config,
    make_window,
    read_windows,
)
from benchmarks.train.round import Stopwatch, describe_round
from model.products import multiply
from train.ranks.distributed import join_ranks
from train.step.precision import DTYPES

if TYPE_CHECKING:
    from train.run import Run


def measure_velocity(options: argparse.Namespace, scratch: Path) -> Json:
    """Our round."""
    from train.ranks.heap import keep_freed_memory
    from train.take_step import take_step

    with build_benchmark_run(options, scratch) as (run, watch):
        losses = []
        while run.step < run.config.training.num_training_steps:
            losses.append(take_step(run).loss)
            if run.step == 1:
                keep_freed_memory(run.rank.device)
            watch.tick()
    return describe_round(run.config, options, watch, losses)


def measure_bare(options: argparse.Namespace, scratch: Path) -> Json:
    """The round of a loop that does nothing else, on the same model; all windows are in memory.

    It keeps its memory as ours does: what is compared is the loop.
    """
    from train.ranks.heap import keep_freed_memory

    with build_benchmark_run(options, scratch) as (run, watch):
        training, model, optimizer = run.config.training, run.model, run.optimizer
        windows = torch.stack([make_window(w) for w in read_windows(run.config, scratch)])
        steps = windows.to(watch.device).unflatten(
            0, (-1, training.gradient_accumulation_steps, training.batch_size_per_device)
        )
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate
        losses = []
        for step in steps:
            total = torch.zeros((), device=watch.device)
            for batch in step:
                scale = run.scaler.get_scale() / len(step)
                with run.autocast():
                    loss = model(batch[:, :-1], batch[:, 1:], scale)
                run.scaler.scale(loss / len(step)).backward()
                total += loss.detach() / len(step)
            run.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
            run.scaler.step(optimizer)
            run.scaler.update()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(total))
            if len(losses) == 1:
                keep_freed_memory(run.rank.device)
            watch.tick()
    return describe_round(run.config, options, watch, losses)


@contextmanager
def build_benchmark_run(
    options: argparse.Namespace, scratch: Path
) -> Iterator[tuple["Run", Stopwatch]]:
    """A run with the weights that all engines share, and a watch that saw it being built."""
    from train.run import build_run, open_checked_sets
    from train.start.ids import fit_model
    from train.step.kernels import use_kernels

    config = make_config(options, scratch)
    with join_ranks(config.distributed) as rank, use_kernels(config, rank.device) as attention:
        say(f"attention: {attention}")
        watch = Stopwatch(options, rank.device)
        sets = open_checked_sets(config)
        fitted = fit_model(config, sets.first.folder, sets.first.manifest)
        run = build_run(fitted, rank, sets, say)
        load_weights(run.model, scratch)
        try:
            yield run, watch
        finally:
            run.batches.close()


def measure_matrix(options: argparse.Namespace, scratch: Path) -> Json:
    """The FLOP/s of the device in one large product, by the best of several."""
    device = find_device()
    side = 8192 if device.type == "cuda" else 2048
    dtype = DTYPES[options.precision] if device.type == "cuda" else torch.float32
    a, b = torch.rand(2, side, side, device=device).to(dtype)
    fastest = math.inf
    for _ in range(10):
        started = time.perf_counter()
        with torch.no_grad():
            multiply(a, b.T) if device.type == "cpu" else a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - started)
    return {"figures": {"flops_per_second": 2 * side**3 / fastest}, "losses": None}
