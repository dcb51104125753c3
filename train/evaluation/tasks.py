"""How many items of a task a model solves, by the rules of lm-evaluation-harness.

The log-probability of a choice after its context is the sum over its tokens. The answer to a
question is the choice of the largest: of the sum (acc), of the sum over its length in characters
(acc_norm), or in bytes of UTF-8 (acc_bytes). A completion is right (acc) if each of its tokens is
the likeliest after those before it, which is what greedy sampling writes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from model.decode.generator import Generator
from shards.disk.json_files import Json
from shards.screen.lines import ReadProgress
from train.evaluation.estimates import Ratio
from train.evaluation.items import Item, Task
from train.evaluation.score import score_places


@dataclass(frozen=True)
class Asked:
    """A context with a choice, in tokens: how likely are the last `size` ones after the others?"""

    item: int
    tokens: list[int]
    size: int
    is_cut: bool


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


def score_task(
    generator: Generator, task: Task, delimiter: str, batch_size: int, clean: Sequence[bool] | None
) -> Json:
    """A task's result as JSON and, where it is known which items are clean, that of those."""
    asked = [
        encode_choice(generator, task, number, delimiter + text)
        for number, item in enumerate(task.items)
        for text in item.choices
    ]
    found = score_all(generator, asked, batch_size)
    result, on_clean, first = Result(), Result(), 0
    for number, item in enumerate(task.items):
        choices = found[first : first + len(item.choices)]
        first += len(item.choices)
        result.add(item, choices)
        if clean is not None and clean[number]:
            on_clean.add(item, choices)
    cut = len({request.item for request in asked if request.is_cut})
    report = {"task": task.name, "kind": task.kind, **result.describe(), "cut_items": cut}
    if clean is not None:
        report |= {"contaminated_items": clean.count(False), "clean": on_clean.describe()}
    return report


def encode_choice(generator: Generator, task: Task, number: int, text: str) -> Asked:
    """A choice after its context: tokens as lm-evaluation-harness cuts them.

    Both are encoded together, and the choice's are those beyond as many as the context has alone;
    spaces at the context's end count to the choice. What does not fit is cut off the beginning.
    """
    item, encode = task.items[number], generator.tokenizer.encode
    context = item.context.rstrip()
    text = item.context[len(context) :] + text
    if context:
        num_before = len(encode(context).ids)
        tokens = encode(context + text).ids
    else:
        own = encode(text, add_special_tokens=False).ids
        tokens, num_before = ([] if own[:1] == [generator.begin] else [generator.begin]) + own, 1
    size = len(tokens) - num_before
    if not 0 < size <= generator.context:
        raise ValueError(
            f"{task.name}: line {item.line:,}: a choice has {size:,} tokens; expected 1 to "
            f"{generator.context:,}, the model's context"
        )
    kept = tokens[-(generator.context + 1) :]
    return Asked(number, kept, size, len(kept) < len(tokens))


def score_all(generator: Generator, asked: Sequence[Asked], batch_size: int) -> list[Choice]:
    """What the model makes of all choices, those of about the same length computed together."""
    progress = ReadProgress("choices", len(asked))
    order = sorted(range(len(asked)), key=lambda number: -len(asked[number].tokens))
    found: dict[int, Choice] = {}
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        batch = score_batch(generator, [asked[number] for number in chosen])
        found |= dict(zip(chosen, batch, strict=True))
        progress.add(len(chosen))
    progress.finish()
    return [found[number] for number in range(len(asked))]


@torch.inference_mode()
def score_batch(generator: Generator, batch: Sequence[Asked]) -> Iterator[Choice]:
    """What the model makes of a few choices; shorter rows end in tokens that none before sees."""
    model, width = generator.model, max(len(asked.tokens) for asked in batch)
    rows = torch.tensor([asked.tokens + [0] * (width - len(asked.tokens)) for asked in batch])
    rows = rows.to(model.lm_head.weight.device)
    places = torch.zeros(len(batch), width - 1, dtype=torch.bool)
    for row, asked in enumerate(batch):
        places[row, len(asked.tokens) - 1 - asked.size : len(asked.tokens) - 1] = True
    places = places.to(rows.device)
    hidden = model.model(rows[:, :-1])
    losses, is_best = score_places(model, hidden[places], rows[:, 1:][places])
    sizes = [asked.size for asked in batch]
    parts = torch.split(losses.double(), sizes), torch.split(is_best, sizes)
    for some, best in zip(*parts, strict=True):
        yield Choice(-float(some.sum()), bool(best.all()))
