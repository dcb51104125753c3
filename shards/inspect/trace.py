"""From samples to the documents they came from, and back.

The order is arithmetic (shards/order.py) and the sidecars say where documents are, so both
directions are computed; nothing was stored during training.
"""

from collections.abc import Iterator

from shards.documents import Document, Sidecars
from shards.format import Int64
from shards.mixture.sets import MixedOrder, Source
from shards.order import SampleOrder
from shards.reader import Shards
from shards.where.choice import Choice

# Where the tokens of a window are in a split: [start, stop) of each piece, ascending.
Spans = list[tuple[int, int]]


def trace_samples(
    shards: Shards, split: str, order: SampleOrder, samples: Int64, choice: Choice | None = None
) -> Iterator[tuple[int, Spans, list[Document]]]:
    """For each sample: its number, where its tokens are in the split, its documents.

    A window is one span, or where documents were chosen, one for each run that it has tokens of.
    """
    sidecars = Sidecars(shards, split)
    starts = order.starts(samples)
    for sample, start in zip(samples.tolist(), starts.tolist(), strict=True):
        stop = start + order.window_tokens
        spans = choice.spans(start, stop) if choice else [(start, stop)]
        yield sample, spans, [found for span in spans for found in sidecars.between(*span)]


def count_overlap(document: Document, spans: Spans) -> int:
    """How many of a document's tokens the spans hold."""
    pieces = ((max(start, document.start), min(stop, document.stop)) for start, stop in spans)
    return sum(max(stop - start, 0) for start, stop in pieces)


def trace_mixture(
    order: MixedOrder, samples: Int64
) -> Iterator[tuple[int, Source, Spans, list[Document]]]:
    """For each sample of a run: its number, its set, where its tokens are, its documents.

    Samples of sets that are not in `order` are left out.
    """
    sets, own = order.mixture.locate(samples)
    traced = {}
    for number, source in zip(order.numbers, order.sets.sources, strict=True):
        here = own[sets == number]
        found = trace_samples(source.shards, "train", source.order, here, source.choice)
        traced[number] = source, found
    for sample, number in zip(samples.tolist(), sets.tolist(), strict=True):
        if number in traced:
            source, found = traced[number]
            _, spans, documents = next(found)
            yield sample, source, spans, documents


def trace_tokens(order: SampleOrder, start: int, stop: int, num_samples: int) -> list[int]:
    """The samples below `num_samples` whose windows hold any token of [start, stop), ascending."""
    epochs = -(-num_samples // order.windows_per_epoch)
    samples = [order.samples_reading(start, stop, e) for e in range(epochs)]
    return [s for epoch in samples for s in epoch.tolist() if s < num_samples]
