"""Which documents a step saw, and which steps saw a document.

Steps are numbered as in the log, where the first update is step 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shards.documents import Document
from shards.format import Int64
from shards.inspect.trace import Spans, trace_mixture, trace_tokens
from shards.mixture.sets import MixedOrder, Source
from shards.order import SampleOrder
from shards.reader import Shards
from train.checkpoints.history import History, samples_of_step, step_of_sample

# Epochs of a run in which a document is looked for, one by one.
MAX_EPOCHS = 1 << 17


@dataclass(frozen=True)
class Tracer:
    """A run's sample order over one of its sets, and how many steps it has."""

    shards: Shards
    history: History
    num_steps: int
    # What the run reads of the set: once, or several times with documents of its own each.
    samples: MixedOrder

    @property
    def sources(self) -> dict[int, Source]:
        """What the run reads of the set, by its number among all that it reads."""
        return dict(zip(self.samples.numbers, self.samples.sets.sources, strict=True))

    @property
    def order(self) -> SampleOrder:
        """The order of the set's own samples; of several, the first."""
        return self.samples.sets.sources[0].order

    def documents_of_step(self, step: int) -> Iterator[tuple[int, Spans, list[Document]]]:
        """For each sample of a step that is of this set: its number, its tokens, its documents.

        Its tokens are where they are in the train split.
        """
        for sample, _, spans, documents in trace_mixture(self.samples, self.list_samples(step)):
            yield sample, spans, documents

    def list_samples(self, step: int) -> Int64:
        """All samples of a step; ValueError if the run has no such step."""
        if not 1 <= step <= self.num_steps:
            raise ValueError(f"step {step}: the run has steps 1 to {self.num_steps:,}")
        return np.array(samples_of_step(self.history, step - 1))

    def leaves_out(self, start: int, stop: int) -> bool:
        """Whether data.where left out all tokens [start, stop) of train: no step saw them."""
        return all(s.choice.leaves_out(start, stop) for s in self.samples.sets.sources)

    def count_samples(self, step: int) -> int:
        """How many samples a step saw."""
        return len(samples_of_step(self.history, step - 1))

    def steps_of_document(self, document: Document) -> list[int]:
        """The run's steps, ascending, in which a sample held any token of the document."""
        return self.steps_of_tokens(document.start, document.stop)

    def steps_of_tokens(self, start: int, stop: int) -> list[int]:
        """The run's steps, ascending, in which a sample held any token of [start, stop) of train.

        Raises ValueError for a run of very many epochs.
        """
        mixture, total = self.samples.mixture, samples_of_step(self.history, self.num_steps - 1)
        samples: list[int] = []
        for number, source in self.sources.items():
            first, last = source.choice.inside(start, stop)
            if first == last:
                continue
            num_samples = int(mixture.count(total.stop)[number])
            epochs = num_samples // source.order.windows_per_epoch
            if epochs > MAX_EPOCHS:
                raise ValueError(
                    f"the run reads the set {epochs:,} times; a document is looked for in at most "
                    f"{MAX_EPOCHS:,} epochs, so ask for single steps with --step"
                )
            own = np.array(trace_tokens(source.order, first, last, num_samples), np.int64)
            samples += mixture.find(number, own).tolist()
        steps = {step_of_sample(self.history, sample) for sample in samples}
        return sorted(step + 1 for step in steps if step is not None)
