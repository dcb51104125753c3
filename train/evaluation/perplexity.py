"""How well a model predicts a set or texts: overall, by source, and by position in the window."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field, fields

import numpy as np
import numpy.typing as npt
import torch

from model.transformer import Transformer
from shards.chat.labels import BEGIN, LOSS
from shards.disk.json_files import Json
from shards.format import Int64
from shards.inspect.stats import PADDING
from shards.screen.lines import ReadProgress
from shards.tokenizer import Spelling
from train.chat.labels import Bits, Marking
from train.evaluation.dealing import Dealer, Float64
from train.evaluation.estimates import Estimate, Sums
from train.evaluation.windows import Batch, Window, find_starts

# Ranges of positions, each but the first as wide as all before it.
MAX_RANGES = 8


class NotFiniteError(ValueError):
    """A loss that is no number."""

    def __init__(self) -> None:
        super().__init__(
            "the model's loss is not a number; its weights are not, or the numbers it computes in "
            "are too small for it (try --dtype fp32)"
        )


@dataclass
class Prediction:
    """How well tokens were predicted, in parts; a range of positions by its first."""

    total: Estimate = field(default_factory=Estimate)
    sources: dict[str, Estimate] = field(default_factory=dict)
    positions: dict[int, Estimate] = field(default_factory=dict)
    # Without the tokens that are in a training set, if that was asked.
    clean: Estimate | None = None

    def describe(self) -> Json:
        """The parts as JSON, the sources with most tokens first."""
        sources = sorted(self.sources.items(), key=lambda entry: (-entry[1].tokens, entry[0]))
        clean: Json = {}
        if self.clean is not None:
            clean["contaminated_tokens"] = self.total.tokens - self.clean.tokens
            clean["clean"] = self.clean.describe()
        return {
            **self.total.describe(),
            **clean,
            "by_source": [{"source": name, **found.describe()} for name, found in sources],
            "by_position": [
                {"first_position": first, **found.describe()}
                for first, found in sorted(self.positions.items())
            ],
        }


@dataclass(frozen=True)
class Scored:
    """A batch's predictions: each array (B, T), 0 where a prediction does not count."""

    tokens: npt.NDArray[np.int64]
    nats: npt.NDArray[np.float64]
    right: npt.NDArray[np.int64]
    text_nats: npt.NDArray[np.float64]
    text_bytes: npt.NDArray[np.int64]

    def add_up(self, window: int, chosen: npt.NDArray[np.bool_] | slice) -> Sums:
        """The sums of some of a window's places."""
        return Sums(
            int(self.tokens[window, chosen].sum()),
            float(self.nats[window, chosen].sum()),
            int(self.right[window, chosen].sum()),
            float(self.text_nats[window, chosen].sum()),
            int(self.text_bytes[window, chosen].sum()),
        )


def predict(
    model: Transformer,
    spelling: Spelling,
    length: int,
    batches: Iterator[Batch],
    total: int,
    padding: int | None = None,
) -> Prediction:
    """Predict all batches, of windows of `length` tokens or fewer; `total` is how many windows.

    `padding` is what rows of a packed set end in. Raises NotFiniteError for a loss that is no
    number.
    """
    prediction, progress = Prediction(), ReadProgress("windows", total)
    edges = find_edges(length)
    for batch in batches:
        rows = batch.tokens, batch.num_old, padding, batch.labels
        scored = score_windows(model, spelling, *rows)
        if not np.isfinite(scored.nats).all():
            raise NotFiniteError
        for window in range(len(batch)):
            prediction.total.add(scored.add_up(window, slice(None)))
            for code in np.unique(batch.sources[window]).tolist():
                if batch.names[code] == PADDING:
                    continue
                estimate = prediction.sources.setdefault(batch.names[code], Estimate())
                estimate.add(scored.add_up(window, batch.sources[window] == code))
            for first, stop in zip(edges, [*edges[1:], length], strict=True):
                estimate = prediction.positions.setdefault(first, Estimate())
                estimate.add(scored.add_up(window, slice(first, stop)))
            if batch.seen is not None:
                prediction.clean = prediction.clean or Estimate()
                prediction.clean.add(scored.add_up(window, ~batch.seen[window]))
        progress.add(len(batch))
    progress.finish()
    return prediction


def predict_together(
    dealer: Dealer,
    what: str,
    model: Transformer,
    spelling: Spelling,
    groups: Iterable[Sequence[Window]],
    read: Callable[[Sequence[Window]], Int64],
    padding: int | None = None,
    marking: Marking | None = None,
) -> Estimate:
    """The same for all ranks of a run together: groups of windows, which `read` makes tokens of.

    And `marking`, of a set of chats, labels. Parts are not told apart. Raises as `predict` does, or
    Stopped, on all ranks.
    """

    def compute(group: Sequence[Window]) -> Float64:
        num_old = np.array([window.num_old for window in group])
        tokens = read(group)
        labels = None if marking is None else marking.read(find_starts(group), tokens)
        scored = score_windows(model, spelling, tokens, num_old, padding, labels)
        sums = [astuple(scored.add_up(window, slice(None))) for window in range(len(group))]
        return np.array(sums, np.float64)

    estimate = Estimate()
    for _, rows in dealer.compute(what, groups, len(fields(Sums)), compute):
        for row in rows.tolist():
            estimate.add(Sums(*row))
    if not np.isfinite(estimate.loss.top):
        raise NotFiniteError
    return estimate


def score_windows(
    model: Transformer,
    spelling: Spelling,
    tokens: Int64,
    num_old: Int64,
    padding: int | None = None,
    labels: Bits | None = None,
) -> Scored:
    """What the model makes of windows (B, T + 1), with the bytes each predicted token stands for.

    The first `num_old` (B,) predictions of each do not count, nor does `padding` after itself. Of
    chats, whose windows have `labels` (B, T + 1), those count that a run would be trained on.
    """
    device = model.lm_head.weight.device
    rows = torch.from_numpy(tokens).to(device)
    firsts = None if labels is None else torch.from_numpy((labels[:, :-1] & BEGIN) != 0).to(device)
    losses, best = model.token_losses(rows[:, :-1], rows[:, 1:], firsts=firsts)
    counts = (np.arange(tokens.shape[1] - 1) >= num_old[:, None]).astype(np.int64)
    if padding is not None:
        counts[(tokens[:, :-1] == padding) & (tokens[:, 1:] == padding)] = 0
    if labels is not None:
        counts[(labels[:, 1:] & LOSS) == 0] = 0
    nats: Float64 = losses.cpu().double().numpy().reshape(counts.shape) * counts
    is_text, num_bytes = measure_text(spelling, tokens)
    return Scored(
        counts,
        nats,
        best.cpu().numpy().reshape(counts.shape) * counts,
        np.where(is_text, nats, 0.0),
        num_bytes * counts,
    )


def measure_text(spelling: Spelling, tokens: Int64) -> tuple[npt.NDArray[np.bool_], Int64]:
    """Of tokens (B, T + 1), which but the first are text, (B, T), and their bytes of UTF-8, (B, T).

    Special tokens are none, and have 0 bytes. A tokenizer whose ids do not add up to their text,
    such as WordPiece's, has no text and no bytes here.
    """
    read, predicted = tokens[:, :-1], tokens[:, 1:]
    if not spelling.adds_up:
        return np.zeros(predicted.shape, np.bool_), np.zeros(predicted.shape, np.int64)
    marks = [spelling.end_of_text]
    if spelling.begin_of_text is not None:
        marks.append(spelling.begin_of_text)
    num_bytes = spelling.sizes[predicted]
    num_bytes -= np.where(np.isin(read, marks), spelling.excess[predicted], 0)
    return ~np.isin(predicted, [*spelling.special]), num_bytes


def find_edges(length: int) -> list[int]:
    """Where the ranges of positions in a window begin, the last of which is its second half.

    >>> find_edges(2048), find_edges(6)
    ([0, 16, 32, 64, 128, 256, 512, 1024], [0, 1, 3])
    """
    halves = {length >> shift for shift in range(1, MAX_RANGES)} - {0}
    return [0, *sorted(halves)]
