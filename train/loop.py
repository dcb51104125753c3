"""The training loop: what happens in which order; each action is a function elsewhere."""

import gc
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from shards.reader import TokenStream
from shards.screen import say
from train.config import Config
from train.distributed import join_ranks
from train.evaluate import count_windows, evaluate
from train.optimizer import update
from train.reports.report import Report
from train.reports.throughput import Speed, find_device_peak
from train.run import Run, build_run
from train.schedule import learning_rate
from train.stop import StopFlag, listen_for_stop


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    checkpoint: Path | None
    validation_loss: float | None
    # The signal that ended it; 0 if it reached its last step.
    signal_number: int


def train(config: Config) -> Outcome:
    """Train to the last step, or until SIGTERM or Ctrl-C; either way a checkpoint is saved.

    Raises ValueError or OSError, with one line, for what the user can fix.
    """
    with join_ranks(config.distributed) as rank:
        run = build_run(config, rank, say_first if rank.is_first else say_nothing)
        report = Report(config, run.step) if rank.is_first else None
        try:
            # Before this there is nothing to save, and a signal just ends the process.
            with listen_for_stop() as stop:
                return run_steps(run, stop, report)
        finally:
            run.batches.close()
            if report:
                report.close()
            # DDP must go before the process group: otherwise gloo may abort when the process ends.
            run.parallel_model = run.model
            gc.collect()


def run_steps(run: Run, stop: StopFlag, report: Report | None) -> Outcome:
    """Take steps from where the run is to its last one, or until a signal."""
    training = run.config.training
    validation = run.shards.stream("validation")
    speed = make_speed(run)
    checkpoint, validation_loss, signal_number = None, None, 0
    while run.step < training.num_training_steps and not signal_number:
        with speed.measure_step():
            loss, norm = take_step(run)
        [loss_sum] = run.rank.sum(loss)
        signal_number = run.rank.max(stop.signal_number)
        is_last = run.step == training.num_training_steps

        speed.add_loss(loss_sum / run.rank.world_size)
        if report and (run.step % training.logging_steps == 0 or is_last or signal_number):
            report.log_step(run.step, describe_step(run, norm) | speed.take())
        # Saved before anything else that may fail, such as an evaluation.
        is_saved = run.step % training.save_steps == 0 or is_last or signal_number > 0
        if is_saved:
            checkpoint = run.save()
        if (run.step % training.eval_steps == 0 or is_last) and not signal_number:
            validation_loss = take_validation_loss(run, validation, stop)
            if report and validation_loss is not None:
                report.log_validation(run.step, validation_loss)
            signal_number = run.rank.max(stop.signal_number)
            if signal_number and not is_saved:
                checkpoint = run.save()
    return Outcome(run.step, checkpoint, validation_loss, signal_number)


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


def take_validation_loss(run: Run, validation: TokenStream, stop: StopFlag) -> float | None:
    """The validation loss at this step; None if there are no windows, or on a stop."""
    config = run.config
    length = config.data.max_seq_length
    return evaluate(
        run.model,
        validation,
        count_windows(validation, length, config.training.eval_windows),
        config.training.batch_size_per_device,
        length,
        run.rank,
        run.autocast,
        is_stopping=lambda: stop.signal_number != 0,
    )


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


def say_first(text: str) -> None:
    """Print a line for the user."""
    say(text)


def say_nothing(text: str) -> None:
    """Print nothing, on all ranks but the first."""
