"""One step: gradients of all micro-steps, their norm, the judgement of both, and the update."""

import math
from contextlib import AbstractContextManager, nullcontext
from itertools import chain

import torch
from torch import Tensor

from train.ranks.strategy import share_gradients
from train.run import Run
from train.step.bad_steps import Step
from train.step.loss_scale import get_scale
from train.step.optimizer import apply_gradients, clip_gradients
from train.step.schedule import learning_rate


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
    z_loss = sum(row[2] for row in rows) / steps / len(rows) if len(totals) > 1 else None
    return Step(loss, norm_before, bad, is_applied, losses, largest, z_loss)


def watch_activations(run: Run) -> AbstractContextManager[list[Tensor]]:
    """What the step to be taken sees of its activations, if it is to be logged and they too."""
    training = run.config.training
    if training.log_activations and (run.step + 1) % training.logging_steps == 0:
        return run.model.watch_activations()
    return nullcontext([])


def add_gradients(run: Run) -> Tensor:
    """The gradients of a step's A micro-steps, added up; returns the sum of their losses, 0-dim.

    With training.z_loss, the sums of losses and z-losses (2,).
    """
    windows = run.batches.next_step(after=run.find_dealing(run.step + 1))
    accumulation_steps = run.batches.dealing.accumulation_steps
    grad_scale = get_scale(run.scaler, run.rank.device) / accumulation_steps
    total = torch.zeros((), device=run.rank.device)
    has_ignored = run.batches.has_ignored
    micro_batches = zip(windows, weigh_micro_steps(run), strict=True)
    for micro_step, (batch, weight) in enumerate(micro_batches, start=1):
        # DDP must know before the forward pass whether the backward pass will share gradients.
        with share_gradients(run.parallel_model, is_last=micro_step == accumulation_steps):
            with run.autocast():
                z_loss = run.config.training.z_loss
                options = grad_scale, z_loss, has_ignored, batch.firsts
                loss = run.parallel_model(batch.tokens, batch.targets, *options)
            run.scaler.scale(loss.sum() * weight / accumulation_steps).backward()
        run.rank.place.move()
        total = total + loss.detach() * weight
    return total


def weigh_micro_steps(run: Run) -> list[float]:
    """The factor of each micro-step's loss, so that the step's is the mean over all that counts.

    1, unless samples do not divide evenly (train/batches.py: Dealing), or targets are ignored: then
    it is its share of the targets that count, of all ranks, by the share that all would have alike.
    """
    dealing = run.batches.dealing
    if not run.batches.has_ignored:
        return dealing.weights
    counts = run.batches.count_targets()
    total = max(run.rank.sum(sum(counts))[0], 1)
    run.batches.num_targets = int(total)
    return [count * dealing.accumulation_steps * dealing.world_size / total for count in counts]
