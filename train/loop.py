"""The training loop: what happens in which order; each action is a function elsewhere."""

import gc
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from shards.reader import Shards, TokenStream
from shards.screen.lines import say
from train.checkpoints.claim import claim_folders
from train.config import Config
from train.evaluate import count_windows, evaluate
from train.ranks.distributed import Rank, join_ranks
from train.ranks.ending import Ending
from train.ranks.heap import keep_freed_memory
from train.ranks.stop import StopFlag
from train.reports.report import Report
from train.reports.throughput import Speed, find_device_peak
from train.run import Run, build_run, fit_model, open_checked_shards
from train.step.optimizer import update
from train.step.schedule import learning_rate


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    checkpoint: Path | None
    validation_loss: float | None
    # The signal that ended it; 0 if it reached its last step.
    signal_number: int


def train(config: Config, stop: StopFlag | None = None, ending: Ending | None = None) -> Outcome:
    """Train to the last step, or until `stop` is set; either way a checkpoint is saved.

    Raises ValueError or OSError, with one line, for what the user can fix; with `ending`, and on
    one rank of several, an error ends the process.
    """
    log_folder = config.infrastructure.log_folder
    with join_ranks(config.distributed, ending, log_folder) as rank, rank.telling():
        shards = open_checked_shards(config.data.shards)
        config = fit_model(config, shards)
        with claim_folders(config.infrastructure, rank):
            return build_and_run(config, rank, shards, stop or StopFlag())


def build_and_run(config: Config, rank: Rank, shards: Shards, stop: StopFlag) -> Outcome:
    """Train in folders that are this run's alone."""
    run = build_run(config, rank, shards, say if rank.is_first else say_nothing)
    report = None
    try:
        with rank.telling():
            if rank.is_first:
                report = Report(config, run.step, run.start is not None, say)
            return run_steps(run, stop, report)
    finally:
        run.saver.close()
        run.batches.close()
        if report:
            report.close()
        # DDP must go before the process group: otherwise gloo may abort when the process ends.
        run.parallel_model = run.model
        gc.collect()


def run_steps(run: Run, stop: StopFlag, report: Report | None) -> Outcome:
    """Take steps from where the run is to its last one, or until a signal."""
    training = run.config.training
    validation = run.shards.stream("validation", run.config.data.checks_first_reads)
    speed = make_speed(run)
    validation_loss, signal_number = None, 0
    if misses_validation(run, report):
        validation_loss = take_validation_loss(run, validation, stop, report)
    place = run.rank.place
    while run.step < training.num_training_steps and not signal_number:
        # The first step may compile.
        place.enter(f"step {run.step + 1:,}", is_long=not stop.has_progress)
        with speed.measure_step():
            loss, norm = take_step(run)
        if not stop.has_progress:
            keep_freed_memory(run.rank.device)
        stop.has_progress = True
        [loss_sum] = run.rank.sum(loss)
        signal_number = run.rank.max(stop.signal_number)
        is_last = run.step == training.num_training_steps

        speed.add_loss(loss_sum / run.rank.world_size)
        if report and (run.step % training.logging_steps == 0 or is_last or signal_number):
            report.log_step(run.step, describe_step(run, norm) | speed.take())
        # Before anything else that may fail, such as an evaluation.
        if is_saved(run) and not signal_number:
            run.save()
            if is_last:
                run.saver.wait()
            signal_number = run.rank.max(stop.signal_number)
        if is_validated(run) and not signal_number:
            validation_loss = take_validation_loss(run, validation, stop, report)
            signal_number = run.rank.max(stop.signal_number)
    checkpoint = run.saver.finish(
        run.step, run.take_snapshot, seconds_left(run, stop) if signal_number else None
    )
    return Outcome(run.step, checkpoint, validation_loss, signal_number)


def is_saved(run: Run) -> bool:
    """Whether the step that the run has done is one with a checkpoint."""
    training = run.config.training
    is_last = run.step == training.num_training_steps
    return (
        is_last or run.step % training.save_steps == 0 or run.saver.retention.is_permanent(run.step)
    )


def seconds_left(run: Run, stop: StopFlag) -> float | None:
    """How long a stop signal still leaves, by training.stop_seconds; None = any time."""
    seconds = run.config.training.stop_seconds
    if seconds is None:
        return None
    # It may have reached another rank, just now.
    return seconds - (time.monotonic() - stop.since if stop.signal_number else 0)


def is_validated(run: Run) -> bool:
    """Whether the validation loss is taken after the step that the run has done."""
    training = run.config.training
    return run.step > 0 and (
        run.step % training.eval_steps == 0 or run.step == training.num_training_steps
    )


def misses_validation(run: Run, report: Report | None) -> bool:
    """Whether a run goes on from a step whose validation loss it was killed before taking."""
    if run.start is None or not is_validated(run):
        return False
    return run.rank.max(report is not None and not report.has_validation(run.step)) > 0


def take_step(run: Run) -> tuple[float, float]:
    """One update from A micro-steps; returns this rank's mean loss and the gradients' norm."""
    accumulation_steps = run.config.training.gradient_accumulation_steps
    grad_scale = run.scaler.get_scale() / accumulation_steps
    total = torch.zeros((), device=run.rank.device)
    for micro_step, (tokens, targets) in enumerate(run.batches.next_step(), start=1):
        # DDP must know before the forward pass whether the backward pass will share gradients.
        with share_gradients(run, is_last=micro_step == accumulation_steps):
            with run.autocast():
                loss = run.parallel_model(tokens, targets, grad_scale)
            run.scaler.scale(loss / accumulation_steps).backward()
        run.rank.place.move()
        total += loss.detach()
    rate = learning_rate(run.step, run.config.training)
    norm = update(run.optimizer, run.scaler, run.config.training.max_grad_norm, rate)
    run.step += 1
    run.skips.add(skipped=not math.isfinite(norm))
    run.skips.check(run.config.training, run.step, run.scaler.get_scale())
    return float(total) / accumulation_steps, norm


def share_gradients(run: Run, is_last: bool) -> AbstractContextManager[None]:
    """A micro-step's context: only the last one of a step averages gradients over the ranks."""
    if is_last or not isinstance(run.parallel_model, DistributedDataParallel):
        return nullcontext()
    return run.parallel_model.no_sync()


def take_validation_loss(
    run: Run, validation: TokenStream, stop: StopFlag, report: Report | None
) -> float | None:
    """The validation loss at this step, reported; None if there are no windows, or on a stop."""
    config = run.config
    length = config.data.max_seq_length
    loss = evaluate(
        run.model,
        validation,
        count_windows(validation, length, config.training.eval_windows),
        config.training.batch_size_per_device,
        length,
        run.rank,
        run.autocast,
        is_stopping=lambda: stop.signal_number != 0,
    )
    if report and loss is not None:
        report.log_validation(run.step, loss)
    if loss is not None:
        run.saver.note_loss(run.step, loss)
    return loss


def describe_step(run: Run, norm: float) -> dict[str, float | None]:
    """What is logged about the step just taken, besides loss and speed."""
    wait_seconds = run.batches.take_wait_seconds()
    return {
        "learning_rate": learning_rate(run.step - 1, run.config.training),
        "grad_norm": norm if math.isfinite(norm) else None,
        "loss_scale": run.scaler.get_scale() if run.scaler.is_enabled() else None,
        "skipped_steps": run.skips.total,
        "samples": run.batches.consumed,
        "data_wait_seconds": round(wait_seconds, 6),
    }


def make_speed(run: Run) -> Speed:
    """The stopwatch for this run's model and device."""
    config = run.config
    peak_flops = find_device_peak(run.rank.device, config.training.precision)
    return Speed(
        run.tokens_per_step,
        config.model.flops_per_token(config.data.max_seq_length),
        None if peak_flops is None else peak_flops * run.rank.world_size,
        run.rank.device,
    )


def say_nothing(text: str) -> None:
    """Print nothing, on all ranks but the first."""
