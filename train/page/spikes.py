"""The steps whose loss stands out from those before it, traced to the documents that they saw."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shards.documents import Document
from train.page.curves import Curve
from train.page.log import RunLog

if TYPE_CHECKING:
    from train.tracing.steps import Tracer

# Entries of the log, before one, whose median it is compared with.
BEFORE = 30
# The first entries: the loss falls so fast there that nothing can stand out.
MIN_BEFORE = 10
# Entries whose medians are taken at once, in 30 times as many numbers.
CHUNK = 50_000
SHOWN_STEPS = 5
SHOWN_DOCUMENTS = 8
# Tokens of each document that are shown.
SHOWN_TOKENS = 48
# Beyond, looking up a step's documents takes long; `velocity shards trace` does it.
MAX_SAMPLES = 1024


@dataclass(frozen=True)
class Spike:
    """A step with a large loss, and the median of those before it."""

    step: int
    loss: float
    usual: float
    # The loss is a mean over so many steps that end here; 1 = it is this step's own.
    num_steps: int = 1


@dataclass(frozen=True)
class Seen:
    """A document that a step saw: how many of its tokens, and the text of the first of them."""

    document: Document
    num_tokens: int
    text: str


@dataclass(frozen=True)
class Traced:
    """What a step saw: some of its documents, those with the most tokens first, or why not."""

    spike: Spike
    num_documents: int
    seen: list[Seen]
    reason: str = ""


def find_spikes(log: RunLog) -> list[Spike]:
    """The steps whose loss is furthest above the median of those before, largest first."""
    losses = log.curves.get("largest_loss", log.curves.get("loss"))
    if losses is None:
        return []
    rises = measure_rises(losses)
    order = np.argsort(-rises, kind="stable")[:SHOWN_STEPS]
    return [
        make_spike(log, losses, place, float(losses.values[place] - rises[place]))
        for place in order.tolist()
        if rises[place] > 0
    ]


def measure_rises(losses: Curve) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """How far each entry is above the median of the BEFORE ones before it; 0 for the first ones."""
    rises = np.zeros(len(losses.values))
    if len(rises) <= MIN_BEFORE:
        return rises
    padded = np.concatenate([np.full(BEFORE, np.nan), losses.values[:-1]])
    windows = np.lib.stride_tricks.sliding_window_view(padded, BEFORE)
    for start in range(MIN_BEFORE, len(rises), CHUNK):
        part = slice(start, start + CHUNK)
        rises[part] = losses.values[part] - np.nanmedian(windows[part], axis=1)
    return rises


def make_spike(log: RunLog, losses: Curve, place: int, usual: float) -> Spike:
    """The entry of the log at a place, with the step that its loss was measured at."""
    step, loss = int(losses.steps[place]), float(losses.values[place])
    exact = log.curves.get("largest_loss_step")
    if exact is not None and "largest_loss" in log.curves:
        at = np.flatnonzero(exact.steps == step)
        return Spike(int(exact.values[at[0]]) if len(at) else step, loss, usual)
    before = int(losses.steps[place - 1]) if place else step - 1
    return Spike(step, loss, usual, step - before)


def trace_spikes(log: RunLog, shards: Path | None) -> Iterator[Traced]:
    """The documents of the steps that stand out; why there are none, where there are none."""
    spikes = find_spikes(log)
    try:
        tracers = open_tracers(log, shards) if spikes else []
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        yield from (Traced(spike, 0, [], reason) for spike in spikes)
        return
    for spike in spikes:
        yield trace_spike(tracers, spike)


def open_tracers(log: RunLog, shards: Path | None) -> "list[Tracer]":
    """Where a run's steps are looked up, by set; ValueError or OSError if they cannot be."""
    from train.tracing.runs import trace_sets

    if log.output_dir is None or log.config is None:
        raise ValueError("the run has no checkpoint, which would say what its steps saw")
    return trace_sets(shards, log.output_dir)


def trace_spike(tracers: "Sequence[Tracer]", spike: Spike) -> Traced:
    """The documents of one step."""
    reason, tracer = "", tracers[0]
    if spike.num_steps > 1:
        reason = f"the loss is the mean of {spike.num_steps} steps, and the log has none of each"
    elif spike.step > tracer.num_steps:
        reason = f"no checkpoint holds this step yet: the newest is of step {tracer.num_steps:,}"
    elif tracer.count_samples(spike.step) > MAX_SAMPLES:
        reason = f"it saw {tracer.count_samples(spike.step):,} samples"
    if reason:
        return Traced(spike, 0, [], reason)
    try:
        return look_up(tracers, spike)
    except (ValueError, OSError) as error:
        return Traced(spike, 0, [], " ".join(str(error).split()))


def look_up(tracers: "Sequence[Tracer]", spike: Spike) -> Traced:
    """A step's documents, those of which it saw the most tokens first."""
    from shards.inspect.trace import count_overlap

    # By the place of their set: two may have equal documents.
    tokens = Counter[tuple[int, Document]]()
    starts: dict[tuple[int, Document], int] = {}
    for place, tracer in enumerate(tracers):
        for _, spans, documents in tracer.documents_of_step(spike.step):
            for document in documents:
                tokens[place, document] += count_overlap(document, spans)
                first = next(start for start, stop in spans if document.start < stop)
                starts.setdefault((place, document), max(first, document.start))
    seen = [
        Seen(document, count, show_text(tracers[place], document, starts[place, document], count))
        for (place, document), count in tokens.most_common(SHOWN_DOCUMENTS)
    ]
    return Traced(spike, len(tokens), seen)


def show_text(tracer: "Tracer", document: Document, start: int, count: int) -> str:
    """The first tokens of a document that a step saw, as text."""
    from shards.inspect.show import show_window

    if document.is_blank:
        return "(removed)"
    # The count may be of several windows, of which this is where the first one begins.
    count = min(count, document.stop - start, SHOWN_TOKENS)
    return show_window(tracer.shards, "train", start, count)
