"""Which passages are trained on, and which are held out: the first by hash, whatever their order.

All text is read once to choose them, and again to train. So as many bytes are trained on as were
asked for, from everywhere in the text, while only hashes are in memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from prep.sources.local import Source
from prep.vocabulary.passages import LeftOut, Passages, read_passages
from prep.vocabulary.request import TrainRequest
from shards.format import Int64

Hashes = npt.NDArray[np.uint64]

# Measured with two tokenizers, of which one takes about half a second for a megabyte.
MAX_HELD_OUT_BYTES = 16_000_000
# Hashes and sizes are thinned out when there are more than this many.
MAX_ENTRIES = 1 << 22
SAMPLE_BYTES = 1_000_000
# Of each batch, until the sample is full.
SAMPLED_PASSAGES = 8


@dataclass(frozen=True)
class Choice:
    """Which passages are held out, and which are trained on.

    Held out are those with hashes up to `held_out_last`, trained on those above it up to
    `train_last`; `held_out_last` is None if nothing is held out.
    """

    held_out_last: int | None
    train_last: int

    def is_held_out(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Which of the passages are measured."""
        if self.held_out_last is None:
            return np.zeros(len(hashes), np.bool_)
        return hashes <= np.uint64(self.held_out_last)

    def is_trained_on(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Which of the passages are trained on."""
        return ~self.is_held_out(hashes) & (hashes <= np.uint64(self.train_last))


@dataclass(frozen=True)
class Survey:
    """What was found in the text."""

    choice: Choice
    text_bytes: int
    train_bytes: int
    held_out_bytes: int
    left_out: LeftOut
    # Some of the text, to estimate from.
    sample: list[str]


@dataclass
class Entries:
    """The hashes and sizes of passages; of more than are wanted, those with the lowest hashes."""

    limit: int  # bytes
    hashes: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))
    sizes: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    num_bytes: int = 0
    waiting: list[Passages] = field(default_factory=list)
    num_waiting: int = 0

    def add(self, passages: Passages) -> None:
        """Count a batch of passages."""
        self.num_bytes += int(passages.sizes.sum())
        self.num_waiting += len(passages.sizes)
        # Without the texts.
        self.waiting.append(Passages(None, passages.hashes, passages.sizes))
        if self.num_waiting > MAX_ENTRIES:
            self.thin_out()

    def thin_out(self) -> None:
        """Join the entries, by hash, copies as one; drop those beyond the limit."""
        hashes = np.concatenate([self.hashes, *(batch.hashes for batch in self.waiting)])
        sizes = np.concatenate([self.sizes, *(batch.sizes for batch in self.waiting)])
        self.waiting, self.num_waiting = [], 0
        self.hashes, places = np.unique(hashes, return_inverse=True)
        self.sizes = np.zeros(len(self.hashes), np.int64)
        np.add.at(self.sizes, places.ravel(), sizes)
        before = np.cumsum(self.sizes) - self.sizes
        self.hashes, self.sizes = (
            self.hashes[before <= self.limit],
            self.sizes[before <= self.limit],
        )


def survey_text(
    sources: Sequence[Source], request: TrainRequest, report: Callable[[int], None]
) -> Survey:
    """Read all text and choose from it; `report` gets the bytes of each batch.

    Raises ValueError if there is too little text to hold any out, or none.
    """
    entries = Entries(request.train_bytes + MAX_HELD_OUT_BYTES)
    left_out = LeftOut()
    sample: list[str] = []
    sample_bytes = 0
    for source in sources:
        for passages in read_passages(source, request, left_out):
            entries.add(passages)
            report(int(passages.sizes.sum()))
            if sample_bytes < SAMPLE_BYTES:
                sample += passages.texts[:SAMPLED_PASSAGES].to_pylist()
                sample_bytes += int(passages.sizes[:SAMPLED_PASSAGES].sum())
    entries.thin_out()
    fraction = request.parse_held_out()
    choice, train_bytes, held_out_bytes = choose(entries, fraction, request.train_bytes)
    return Survey(choice, entries.num_bytes, train_bytes, held_out_bytes, left_out, sample)


def choose(entries: Entries, fraction: Fraction, max_train_bytes: int) -> tuple[Choice, int, int]:
    """The choice, and the bytes trained on and held out.

    At least one passage is held out, unless the fraction is 0; copies are never separated.
    """
    ends = np.cumsum(entries.sizes)
    num_held_out = 0
    if fraction:
        wanted = min(int(fraction * entries.num_bytes), MAX_HELD_OUT_BYTES)
        num_held_out = max(int(np.searchsorted(ends, wanted, "right")), 1)
    if num_held_out >= len(ends):
        raise ValueError(
            f"--input: {entries.num_bytes:,} bytes of text in {len(ends):,} different passages are "
            "too few to train on and to measure; give more text"
        )
    held_out_bytes = int(ends[num_held_out - 1]) if num_held_out else 0
    end = int(np.searchsorted(ends, held_out_bytes + max_train_bytes, "right"))
    if end == num_held_out:
        raise ValueError(
            f"--train-bytes is {max_train_bytes:,}; expected at least "
            f"{int(entries.sizes[num_held_out]):,}, as the first passage has"
        )
    train_bytes = int(ends[end - 1]) - held_out_bytes
    held_out_last = int(entries.hashes[num_held_out - 1]) if num_held_out else None
    return Choice(held_out_last, int(entries.hashes[end - 1])), train_bytes, held_out_bytes
