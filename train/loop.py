"""The training loop: what happens in which order; each action is a function elsewhere."""

import gc
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shards.mixture.sets import Sets
from shards.screen.lines import Say, say
from train.bad_step import react
from train.begin.settle import settle_start
from train.begin.shape import Beginning
from train.checkpoints.claim import claim_folders
from train.config import Config
from train.evaluate import Split, count_windows, evaluate, open_validation, pick
from train.evaluation.dealing import Dealer, Stopped
from train.evaluation.during import measure_each
from train.ranks.distributed import Rank, join_ranks
from train.ranks.ending import Ending
from train.ranks.heap import keep_freed_memory
from train.ranks.stop import StopFlag
from train.reports.report import Report
from train.reports.texts import Sample
from train.reports.throughput import Speed, find_device_peak
from train.run import Run, build_run, open_checked_sets
from train.start.ids import fit_sets
from train.start.report import LABEL_WIDTH
from train.step.bad_steps import Step
from train.step.kernels import use_kernels
from train.step.schedule import learning_rate
from train.take_step import take_step
from train.training_config import TrainingConfig

# Activations above this are near the end of fp16, at 65,504.
HALF_OF_FP16 = 32_768


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
        sets = open_checked_sets(config)
        tell = say if rank.is_first else say_nothing
        config, beginning = settle_start(config, rank, sets.first, tell)
        config = fit_sets(config, sets, rank.world_size)
        with claim_folders(config.infrastructure, rank):
            return build_and_run(config, rank, sets, stop or StopFlag(), beginning, tell)


def build_and_run(
    config: Config,
    rank: Rank,
    sets: Sets,
    stop: StopFlag,
    beginning: Beginning | None,
    tell: Say,
) -> Outcome:
    """Train in folders that are this run's alone."""
    with use_kernels(config, rank.device) as attention:
        run = build_run(config, rank, sets, tell, beginning)
        tell(f"{'attention':<{LABEL_WIDTH}} {attention}")
        return run_to_the_end(run, stop)


def run_to_the_end(run: Run, stop: StopFlag) -> Outcome:
    """Train what was put together, and close what it holds."""
    report = None
    try:
        with run.rank.telling():
            if run.rank.is_first:
                report = Report(run.config, run.step, run.start is not None, say)
                report.forget_bad_steps(run.batches.consumed)
            return run_steps(run, stop, report)
    finally:
        run.rank.place.enter("the end", is_long=None)
        run.saver.close()
        run.batches.close()
        if report:
            report.close()
        if run.parallel_model is not run.model:
            # DDP must go before the process group: otherwise gloo may abort when the process ends.
            run.parallel_model = run.model
            gc.collect()


def run_steps(run: Run, stop: StopFlag, report: Report | None) -> Outcome:
    """Take steps from where the run is to its last one, or until a signal."""
    training = run.config.training
    validation = open_validation(run.order.sets.validation, run.config.data.checks_first_reads)
    speed = make_speed(run)
    validation_loss, signal_number = None, 0
    if misses_validation(run, report):
        validation_loss = take_validation_loss(run, validation, stop, report)
    if run.start:
        take_evaluations(run, stop, report)
        write_samples(run, report)
    place = run.rank.place
    while run.step < training.num_training_steps and not signal_number:
        # The first step may compile.
        place.enter(f"step {run.step + 1:,}", is_long=not stop.has_progress)
        with speed.measure_step():
            step = take_step(run)
        if not stop.has_progress:
            keep_freed_memory(run.rank.device)
        stop.has_progress = True
        if step.bad and react(run, step, report):
            speed.take()
            signal_number = run.rank.max(stop.signal_number)
            continue
        signal_number = run.rank.max(stop.signal_number)
        is_last = run.step == training.num_training_steps

        speed.add_step(step.loss, run.step, run.tokens_of_step)
        if report and (run.step % training.logging_steps == 0 or is_last or signal_number):
            report.log_step(run.step, describe_step(run, step) | speed.take())
            warn_of_overflow(step, training, report)
        # Before anything else that may fail, such as an evaluation.
        if is_saved(run) and not signal_number:
            run.save()
            if is_last:
                run.saver.wait()
            signal_number = run.rank.max(stop.signal_number)
        if is_validated(run) and not signal_number:
            validation_loss = take_validation_loss(run, validation, stop, report)
            signal_number = run.rank.max(stop.signal_number)
        if not signal_number and take_evaluations(run, stop, report):
            signal_number = run.rank.max(stop.signal_number)
        if not signal_number:
            write_samples(run, report)
    checkpoint = run.saver.finish(
        run.step, run.take_snapshot, find_deadline(run, stop) if signal_number else None
    )
    return Outcome(run.step, checkpoint, validation_loss, signal_number)


def is_saved(run: Run) -> bool:
    """Whether the step that the run has done is one with a checkpoint."""
    training = run.config.training
    is_last = run.step == training.num_training_steps
    return (
        is_last or run.step % training.save_steps == 0 or run.saver.retention.is_permanent(run.step)
    )


def find_deadline(run: Run, stop: StopFlag) -> float | None:
    """Until when a stop signal leaves time, in time.monotonic(), by training.stop_seconds.

    None = any time.
    """
    seconds = run.config.training.stop_seconds
    if seconds is None:
        return None
    # It may have reached another rank alone, within the last step.
    return seconds + (stop.since if stop.signal_number else time.monotonic())


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
    return run.rank.max(report is not None and not report.has(run.step, "validation_loss")) > 0


def take_validation_loss(
    run: Run, validation: Sequence[Split], stop: StopFlag, report: Report | None
) -> float | None:
    """The validation loss at this step, reported; None if there are no windows, or on a stop.

    It is the mean of the sets' losses by their shares.
    """
    config, sets = run.config, run.order.sets.validation
    length, padding = config.data.max_seq_length, run.batches.padding
    found: list[list[float] | None] = []
    for stream, marking in validation:
        num_windows = count_windows(stream, length, config.training.eval_windows, padding)
        one = evaluate(
            run.model,
            stream,
            num_windows,
            config.training.micro_batch,
            length,
            run.rank,
            run.autocast,
            is_stopping=lambda: stop.signal_number != 0,
            padding=padding,
            marking=marking,
            preferences=run.preferences,
        )
        if one is None and num_windows:
            return None  # On a stop.
        found.append(one)
    losses = pick(found, 0)
    mean = sets.average(losses)
    if report and mean is not None:
        names = enumerate(run.preferences.metrics if run.preferences else (), start=1)
        more = {f"validation_{name}": sets.average(pick(found, place)) for place, name in names}
        report.log_validation(run.step, mean, sets.by_name(losses), more)
    if mean is not None:
        run.saver.note_loss(run.step, mean)
    return mean


def take_evaluations(run: Run, stop: StopFlag, report: Report | None) -> bool:
    """Evaluate the sets and tasks of this step that the log lacks, and log them; false if none are.

    A stop signal leaves the rest out; a run that goes on from this step makes up for it.
    """
    due = run.evaluations.list_due(run.step)
    if not due:
        return False
    logged = run.rank.sum(*(report is not None and report.has(run.step, e.metric) for e in due))
    missing = [each for each, is_logged in zip(due, logged, strict=True) if not is_logged]
    dealer = Dealer(run.rank, run.autocast, lambda: stop.signal_number != 0)
    max_tokens = run.config.training.micro_batch * run.config.data.max_seq_length
    with suppress(Stopped):
        for key, metrics in measure_each(missing, run.model, dealer, max_tokens):
            if report:
                report.log_evaluation(run.step, key, metrics)
    return True


def write_samples(run: Run, report: Report | None) -> None:
    """Log this step's texts, if it has some and the log has not; all ranks wait for them."""
    sample_steps = run.config.training.sample_steps
    if not sample_steps or run.step % sample_steps:
        return
    run.rank.place.enter(f"writing texts at step {run.step:,}", is_long=True)
    # A model that is in parts is only whole while all ranks compute.
    written = run.sampler.write(run.model) if run.sampler and run.is_sharded else None
    run.rank.do_first(lambda: log_samples(run, report, written))


def log_samples(run: Run, report: Report | None, written: list[Sample] | None) -> None:
    """What the first rank does of that."""
    if report and run.sampler:
        write = partial(run.sampler.write, run.model)
        count = len(run.sampler.prompts)
        report.log_samples(run.step, count, write if written is None else lambda: written)


def describe_step(run: Run, step: Step) -> dict[str, float | None]:
    """What is logged about the step just taken, besides loss and speed."""
    wait_seconds = run.batches.take_wait_seconds()
    return {
        "learning_rate": learning_rate(run.step - 1, run.config.training),
        "grad_norm": step.norm if math.isfinite(step.norm) else None,
        **step.details,
        "largest_activation": step.largest_activation,
        "loss_scale": run.scaler.get_scale() if run.scaler.is_enabled() else None,
        "skipped_steps": run.bad_steps.total,
        "bad_steps": run.bad_steps.bad,
        "samples": run.batches.consumed,
        "trained_share": find_trained_share(run),
        **describe_epochs(run),
        "data_wait_seconds": round(wait_seconds, 6),
    }


def find_trained_share(run: Run) -> float | None:
    """Which share of the step's tokens were targets, of a run that reads chats."""
    if run.batches.labels is None or run.batches.num_targets is None:
        return None
    return round(run.batches.num_targets / run.tokens_of_step, 6)


def describe_epochs(run: Run) -> dict[str, float | None]:
    """How often the run has read its set; of several sets, each by itself."""
    sets, counts = run.order.sets, run.order.count_samples(run.batches.consumed)
    epochs = [
        round(count / source.order.windows_per_epoch, 6)
        for count, source in zip(counts, sets.sources, strict=True)
    ]
    if len(epochs) == 1:
        return {"epoch": epochs[0]}
    return {f"epoch/{name}": value for name, value in sets.by_name(epochs).items()}


def warn_of_overflow(step: Step, training: TrainingConfig, report: Report) -> None:
    """Say, once, that activations come near the end of fp16."""
    largest = step.largest_activation
    if largest is None or training.precision != "fp16" or largest <= HALF_OF_FP16:
        return
    report.tell_once(
        f"the largest activation is {largest:,.0f}, and fp16 ends at 65,504; beyond it every step "
        "is skipped, so training.precision=bf16 may soon be needed"
    )


def make_speed(run: Run) -> Speed:
    """The stopwatch for this run's model and device."""
    config = run.config
    peak_flops = find_device_peak(run.rank.device, config.training.precision)
    return Speed(
        config.model.flops_per_token(config.data.max_seq_length),
        config.model.causal_flops_per_token(config.data.max_seq_length),
        None if peak_flops is None else peak_flops * run.rank.world_size,
        run.rank.device,
    )


def say_nothing(text: str) -> None:
    """Print nothing, on all ranks but the first."""
