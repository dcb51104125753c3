"""From samples to the documents they came from, and back.

The order is arithmetic (shards/order.py) and the sidecars say where documents are, so both
directions are computed; nothing was stored during training.
"""

from collections.abc import Iterator

from shards.documents import Document, Sidecars
from shards.format import Int64
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


def trace_tokens(order: SampleOrder, start: int, stop: int, num_samples: int) -> list[int]:
    """The samples below `num_samples` whose windows hold any token of [start, stop), ascending."""
    epochs = -(-num_samples // order.windows_per_epoch)
    samples = [order.samples_reading(start, stop, e) for e in range(epochs)]
    return [s for epoch in samples for s in epoch.tolist() if s < num_samples]
