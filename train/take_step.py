"""One step: gradients of all micro-steps, their norm, the judgement of both, and the update."""

import math
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from train.ranks.strategy import share_gradients
from train.run import Run
from train.step.bad_steps import Step
from train.step.loss_scale import get_scale
from train.step.optimizer import apply_gradients, clip_gradients
from train.step.schedule import learning_rate
from train.targets import MicroBatch


def take_step(run: Run) -> Step:
    """One update from A micro-steps, or none if its gradients or its loss are bad."""
    training = run.config.training
    with watch_activations(run) as seen:
        totals = add_gradients(run).reshape(-1)
    norm = clip_gradients(run.optimizer, run.scaler, training.max_grad_norm)
    # The host waits for the device here. What ranks decide, they decide from the same numbers.
    rows = run.rank.gather(torch.stack([norm, *totals, *(x.float() for x in seen)]))
    steps = run.batches.dealing.accumulation_steps
    losses = [total / steps for _, total, *_ in rows]
    loss = sum(losses) / len(losses)
    bad = run.bad_steps.judge(loss, training)
    is_finite = all(math.isfinite(norm) for norm, *_ in rows)
    is_applied = is_finite and (bad is None or training.on_bad_step == "warn")
    rate = learning_rate(run.step, training)
    apply_gradients(
        run.optimizer, run.scaler, rate, not is_finite, is_applied, training.min_loss_scale
    )
    run.count_step()
    run.bad_steps.add(run.step, loss, bad is not None, is_applied, training.spike_window)
    run.bad_steps.check(training, run.step, bad, run.scaler)
    activations = chain(*(row[1 + len(totals) :] for row in rows))
    largest = max(activations, key=lambda x: (math.isnan(x), x), default=None)
    norm_before = rows[0][0] if is_finite else math.nan
    details = {
        name: sum(row[place] for row in rows) / steps / len(rows)
        for place, name in enumerate(name_details(run), start=2)
    }
    return Step(loss, norm_before, bad, is_applied, losses, largest, details)


def name_details(run: Run) -> tuple[str, ...]:
    """What a step's losses are followed by in `add_gradients`."""
    if run.preferences:
        return run.preferences.metrics
    return ("z_loss",) if run.config.training.z_loss else ()


def watch_activations(run: Run) -> AbstractContextManager[list[Tensor]]:
    """What the step to be taken sees of its activations, if it is to be logged and they too."""
    training = run.config.training
    if training.log_activations and (run.step + 1) % training.logging_steps == 0:
        return run.model.watch_activations()
    return nullcontext([])


def add_gradients(run: Run) -> Tensor:
    """The gradients of a step's A micro-steps, added up; returns the sum of their losses, 0-dim.

    Where there are details (`name_details`), the sums of losses and of those (1 + details,).
    """
    windows = run.batches.next_step(after=run.find_dealing(run.step + 1))
    accumulation_steps = run.batches.dealing.accumulation_steps
    grad_scale = get_scale(run.scaler, run.rank.device) / accumulation_steps
    total = torch.zeros((), device=run.rank.device)
    micro_batches = zip(windows, weigh_micro_steps(run), strict=True)
    for micro_step, (batch, weight) in enumerate(micro_batches, start=1):
        # DDP must know before the forward pass whether the backward pass will share gradients.
        with share_gradients(run.parallel_model, is_last=micro_step == accumulation_steps):
            with run.autocast():
                loss = lose(run, batch, grad_scale)
            run.scaler.scale(loss.sum() * weight / accumulation_steps).backward()
        run.rank.place.move()
        total = total + loss.detach() * weight
    return total


def lose(run: Run, batch: MicroBatch, grad_scale: Tensor | float) -> Any:
    """What a micro-step's loss is, 0-dim, or it and the details; their sum is differentiated."""
    if run.preferences:
        return run.preferences.lose(run.parallel_model, batch)
    options = grad_scale, run.config.training.z_loss, run.batches.has_ignored, batch.firsts
    return run.parallel_model(batch.tokens, batch.targets, *options)


def weigh_micro_steps(run: Run) -> list[float]:
    """The factor of each micro-step's loss, so that the step's is the mean over all that counts.

    1, unless samples do not divide evenly (train/batches.py: Dealing), or targets are ignored: then
    it is its share of the targets that count, of all ranks, by the share that all would have alike;
    of pairs, where preferences are learned.
    """
    dealing = run.batches.dealing
    if not run.batches.has_ignored:
        return dealing.weights
    targets = run.batches.count_targets()
    counts = run.batches.count_pairs() if run.preferences else targets
    total, num_targets = run.rank.sum(sum(counts), sum(targets))
    run.batches.num_targets = int(num_targets)
    total = max(total, 1)
    return [count * dealing.accumulation_steps * dealing.world_size / total for count in counts]
