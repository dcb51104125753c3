"""From samples to the documents they came from, and back.

The order is arithmetic (shards/order.py) and the sidecars say where documents are, so both
directions are computed; nothing was stored during training.
"""

from collections.abc import Iterator

import numpy as np

from shards.documents import Document, Sidecars
from shards.format import Int64
from shards.mixture.sets import MixedOrder, Source
from shards.order import SampleOrder
from shards.reader import Shards


def trace_samples(
    shards: Shards, split: str, order: SampleOrder, samples: Int64
) -> Iterator[tuple[int, int, list[Document]]]:
    """For each sample: its number, where its window begins in the stream, its documents."""
    sidecars = Sidecars(shards, split)
    starts = order.starts(samples)
    for sample, start in zip(samples.tolist(), starts.tolist(), strict=True):
        documents = sidecars.between(start, start + order.window_tokens)
        yield sample, start, documents


def trace_mixture(
    order: MixedOrder, samples: Int64
) -> Iterator[tuple[int, Source, int, list[Document]]]:
    """For each sample of a run: its number, its set, where its window begins, its documents.

    Samples of sets that are not read any more are left out.
    """
    sets, own = order.mixture.locate(samples)
    traced: dict[int, tuple[int, Source, int, list[Document]]] = {}
    for source, number in zip(order.sets.sources, order.numbers, strict=True):
        here = np.flatnonzero(sets == number)
        found = trace_samples(source.shards, "train", source.order, own[here])
        for place, (_, start, documents) in zip(here.tolist(), found, strict=True):
            traced[place] = int(samples[place]), source, start, documents
    yield from (traced[place] for place in sorted(traced))


def trace_tokens(order: SampleOrder, start: int, stop: int, num_samples: int) -> list[int]:
    """The samples below `num_samples` whose windows hold any token of [start, stop), ascending."""
    epochs = -(-num_samples // order.windows_per_epoch)
    samples = [order.samples_reading(start, stop, e) for e in range(epochs)]
    return [s for epoch in samples for s in epoch.tolist() if s < num_samples]
