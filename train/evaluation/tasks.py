"""How many items of a task a model solves, by the rules of lm-evaluation-harness.

The log-probability of a choice after its context is the sum over its tokens. The answer to a
question is the choice of the largest: of the sum (acc), of the sum over its length in characters
(acc_norm), or in bytes of UTF-8 (acc_bytes). A completion is right (acc) if each of its tokens is
the likeliest after those before it, which is what greedy sampling writes.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tokenizers import Tokenizer

from model.transformer import Transformer
from shards.disk.json_files import Json
from shards.screen.lines import ReadProgress
from train.evaluation.dealing import Dealer, Float64
from train.evaluation.estimates import Ratio
from train.evaluation.items import Item, Task
from train.evaluation.perplexity import NotFiniteError


@dataclass(frozen=True)
class Encoding:
    """How a model reads texts: in which tokens, what begins one, and how many it takes."""

    tokenizer: Tokenizer
    begin: int
    context: int


@dataclass(frozen=True)
class Asked:
    """A context with a choice, in tokens: how likely are the last `size` ones after the others?"""

    item: int
    tokens: list[int]
    size: int
    is_cut: bool


@dataclass(frozen=True)
class Limits:
    """The most choices, and tokens of them all filled up, that are computed together."""

    rows: int
    tokens: int = sys.maxsize


@dataclass
class Choice:
    """What the model makes of a choice."""

    logprob: float
    is_greedy: bool


@dataclass
class Result:
    """The means over some items of a task."""

    metrics: dict[str, Ratio] = field(default_factory=dict)
    logprobs: Ratio = field(default_factory=Ratio)

    def add(self, item: Item, choices: Sequence[Choice]) -> None:
        """Count an item."""
        sums = np.array([choice.logprob for choice in choices])
        if len(choices) == 1:
            scores = {"acc": choices[0].is_greedy}
            self.logprobs.add(float(sums[0]), 1)
        else:
            # The field counts characters in acc_norm; in bytes, long letters weigh no less.
            lengths = np.array([len(text) for text in item.choices])
            sizes = np.array([len(text.encode()) for text in item.choices])
            by_name = {"acc": sums, "acc_norm": sums / lengths, "acc_bytes": sums / sizes}
            scores = {name: int(found.argmax()) == item.answer for name, found in by_name.items()}
        for name, is_right in scores.items():
            self.metrics.setdefault(name, Ratio()).add(float(is_right), 1)

    def describe(self) -> Json:
        """The means as JSON, with their standard errors, in which an item is one draw."""
        found: Json = {"items": max((m.num_windows for m in self.metrics.values()), default=0)}
        for name, mean in self.metrics.items():
            found |= {name: mean.value, f"{name}_stderr": mean.stderr}
        if self.logprobs.value is not None:
            found["perplexity"] = math.exp(min(-self.logprobs.value, 700.0))
        return found


@dataclass(frozen=True)
class EncodedTask:
    """A task as a model is asked it."""

    task: Task
    asked: Sequence[Asked]  # All choices of the first item, then of the next, ...

    @property
    def num_cut(self) -> int:
        """How many items do not fit into the model's context, and lost their beginning."""
        return len({request.item for request in self.asked if request.is_cut})


def encode_task(encoding: Encoding, task: Task, delimiter: str) -> EncodedTask:
    """The task in a model's tokens; ValueError, naming file and line, for what cannot be asked."""
    asked = [
        encode_choice(encoding, task, number, delimiter + text)
        for number, item in enumerate(task.items)
        for text in item.choices
    ]
    return EncodedTask(task, asked)


def score_task(
    dealer: Dealer,
    model: Transformer,
    encoded: EncodedTask,
    limits: Limits,
    clean: Sequence[bool] | None = None,
) -> Json:
    """A task's result as JSON and, where it is known which items are clean, that of those.

    Raises NotFiniteError for log-probabilities that are no numbers.
    """
    task, found = encoded.task, score_all(dealer, model, encoded, limits)
    result, on_clean, first = Result(), Result(), 0
    for number, item in enumerate(task.items):
        choices = found[first : first + len(item.choices)]
        first += len(item.choices)
        result.add(item, choices)
        if clean is not None and clean[number]:
            on_clean.add(item, choices)
    report = {
        "task": task.name,
        "kind": task.kind,
        **result.describe(),
        "cut_items": encoded.num_cut,
    }
    if clean is not None:
        report |= {"contaminated_items": clean.count(False), "clean": on_clean.describe()}
    return report


def encode_choice(encoding: Encoding, task: Task, number: int, text: str) -> Asked:
    """A choice after its context: tokens as lm-evaluation-harness cuts them.

    Both are encoded together, and the choice's are those beyond as many as the context has alone;
    spaces at the context's end count to the choice. What does not fit is cut off the beginning.
    """
    item, encode = task.items[number], encoding.tokenizer.encode
    context = item.context.rstrip()
    text = item.context[len(context) :] + text
    if context:
        num_before = len(encode(context).ids)
        tokens = encode(context + text).ids
    else:
        own = encode(text, add_special_tokens=False).ids
        tokens, num_before = ([] if own[:1] == [encoding.begin] else [encoding.begin]) + own, 1
    size = len(tokens) - num_before
    if not 0 < size <= encoding.context:
        raise ValueError(
            f"{task.name}: line {item.line:,}: a choice has {size:,} tokens; expected 1 to "
            f"{encoding.context:,}, the model's context"
        )
    kept = tokens[-(encoding.context + 1) :]
    return Asked(number, kept, size, len(kept) < len(tokens))


def score_all(
    dealer: Dealer, model: Transformer, encoded: EncodedTask, limits: Limits
) -> list[Choice]:
    """What the model makes of all choices, those of about the same length computed together."""
    asked = encoded.asked
    progress = ReadProgress("choices", len(asked)) if dealer.shows_progress else None
    order = sorted(range(len(asked)), key=lambda number: -len(asked[number].tokens))
    found: dict[int, Choice] = {}

    def compute(chosen: Sequence[int]) -> Float64:
        return score_batch(model, [asked[number] for number in chosen])

    batches = cut_batches(order, asked, limits)
    for chosen, rows in dealer.compute(encoded.task.name, batches, 2, compute):
        for number, (logprob, is_greedy) in zip(chosen, rows.tolist(), strict=True):
            found[number] = Choice(logprob, bool(is_greedy))
        if progress:
            progress.add(len(chosen))
    if progress:
        progress.finish()
    if not all(math.isfinite(choice.logprob) for choice in found.values()):
        raise NotFiniteError
    return [found[number] for number in range(len(asked))]


def cut_batches(
    order: Sequence[int], asked: Sequence[Asked], limits: Limits
) -> Iterator[Sequence[int]]:
    """The choices in their order, the longest first, as many together as the limits allow."""
    first = 0
    while first < len(order):
        width = len(asked[order[first]].tokens)
        size = max(min(limits.rows, limits.tokens // width), 1)
        yield order[first : first + size]
        first += size


def score_batch(model: Transformer, batch: Sequence[Asked]) -> Float64:
    """The log-probability of each choice, and whether greedy sampling writes it: (len(batch), 2).

    Shorter rows end in tokens that none before sees.
    """
    width = max(len(asked.tokens) for asked in batch)
    rows = torch.tensor([asked.tokens + [0] * (width - len(asked.tokens)) for asked in batch])
    places = torch.zeros(len(batch), width - 1, dtype=torch.bool)
    for row, asked in enumerate(batch):
        places[row, len(asked.tokens) - 1 - asked.size : len(asked.tokens) - 1] = True
    device = model.lm_head.weight.device
    rows, places = rows.to(device), places.to(device)
    losses, is_best = model.token_losses(rows[:, :-1], rows[:, 1:], places)
    sizes = [asked.size for asked in batch]
    parts = torch.split(losses.cpu().double(), sizes), torch.split(is_best.cpu(), sizes)
    return np.array([[-float(some.sum()), best.all()] for some, best in zip(*parts, strict=True)])
