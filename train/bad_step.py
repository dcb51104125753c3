"""What is done about a bad step: it is told, its samples are looked at, and the run may go back.

bad-steps.jsonl in the log folder has a line for each:

    step  loss  reason  action  back_to_step    what happened
    first_sample  next_sample                   the step's samples; a rollback passes over all that
                                                came after its checkpoint, up to next_sample
    rank_losses                                 each rank's own: one alone may be a broken machine
    samples                                     the worst first, each with its loss, its rank, its
                                                set, its documents, and where its window begins in
                                                the set's train split
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from model.loss import IGNORED
from shards.documents import Document
from shards.inspect.trace import trace_mixture
from train.reports.log_folder import BAD_STEPS
from train.reports.report import Report
from train.rollback import go_back
from train.run import Run
from train.step.bad_steps import Step

# As many samples of a step are listed with their documents.
MAX_SAMPLES = 256


def react(run: Run, step: Step, report: Report | None) -> bool:
    """Do what training.on_bad_step asks about the step just taken; whether the run went back.

    All ranks call this together, only the first one with a report.
    """
    action, bad_step = run.config.training.on_bad_step, run.step
    next_sample = run.batches.consumed
    # A checkpoint may be loaded.
    run.rank.place.enter(f"step {bad_step:,}, which is bad", is_long=True)
    if action == "rollback":
        run.bad_steps.check_rollbacks(run.config.training, bad_step, str(step.bad))
    losses = measure_samples(run) if action != "warn" else None
    back_to = go_back(run) if action == "rollback" else None
    if report is None:
        return back_to is not None
    record: dict[str, Any] = {
        "step": bad_step,
        "loss": finite(step.loss),
        "reason": step.bad,
        "action": "warn" if step.is_applied else "skip" if back_to is None else "rollback",
        "back_to_step": back_to,
        "first_sample": next_sample - run.batches.dealing.samples_per_step,
        "next_sample": next_sample,
        "rank_losses": [finite(loss) for loss in step.rank_losses],
    }
    text = f"step {bad_step:,}: {step.bad}"
    if back_to is not None:
        report.go_back(back_to)
        text += f"; back to step {back_to:,}, and past all samples since"
    elif not step.is_applied:
        text += "; it was not applied"
        if action == "rollback":
            text += f", as no checkpoint is {run.config.training.spike_window:,} steps older"
    if losses is not None:
        try:
            record["samples"] = describe_worst(run, record["first_sample"], losses)
            text += f"; {BAD_STEPS} in {report.folder} has its documents"
        except (OSError, ValueError) as error:
            text += f"; its documents cannot be told ({error})"
    report.log_bad_step(record, text)
    return back_to is not None


def measure_samples(run: Run) -> list[list[float]]:
    """For each rank the losses of its samples in the step just taken, one by one, in order."""
    losses = []
    for batch in run.batches.repeat_step():
        tokens, targets = batch.tokens, batch.targets
        with run.autocast():
            if run.preferences:
                losses.append(run.preferences.lose_rows(run.model, batch))
                continue
            places = (targets != IGNORED) if run.batches.has_ignored else None
            found, _ = run.model.token_losses(tokens, targets, places, batch.firsts)
        if places is None:
            losses.append(found.view(tokens.shape).mean(1))
        else:
            rows = torch.split(found, places.sum(1).tolist())
            losses.append(torch.stack([row.sum() / max(len(row), 1) for row in rows]))
    own = torch.cat(losses)
    # Where samples do not divide evenly, some ranks have fewer; they fill up with zeros.
    return run.rank.gather(pad(own, (0, run.rank.max(len(own)) - len(own))))


def describe_worst(run: Run, first_sample: int, losses: list[list[float]]) -> list[dict[str, Any]]:
    """The samples with the largest losses, and the documents that each holds tokens of."""
    owners: dict[int, tuple[int, float]] = {}
    for rank, own in enumerate(losses):
        runs = replace(run.batches.dealing, rank=rank).own_samples(first_sample)
        samples = np.concatenate(runs).tolist()
        owners |= {s: (rank, loss) for s, loss in zip(samples, own, strict=False)}
    # What is not finite comes first.
    worst = sorted(
        owners, key=lambda s: -owners[s][1] if math.isfinite(owners[s][1]) else -math.inf
    )
    worst = worst[:MAX_SAMPLES]
    return [
        {
            "sample": sample,
            "rank": owners[sample][0],
            "loss": finite(owners[sample][1]),
            "set": str(source.shards.folder),
            "start": spans[0][0],
            "documents": [describe_document(document) for document in documents],
        }
        for sample, source, spans, documents in trace_mixture(run.order, np.array(worst))
    ]


def describe_document(document: Document) -> dict[str, Any]:
    """Where a document came from."""
    names = ("url", "doc_hash", "source_file", "source_row")
    return {name: getattr(document, name) for name in names}


def finite(value: float) -> float | None:
    """A number as JSON can hold it; None if it is not finite."""
    return value if math.isfinite(value) else None
