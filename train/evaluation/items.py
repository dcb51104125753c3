"""The items of a task, read from a file of JSON lines: questions with choices, or completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.sample.prompts import cut_lines, read_text
from shards.disk.json_files import Json, parse_json

Kind = Literal["choices", "completions"]
EXPECTED = (
    'expected {"question": ..., "choices": [...], "answer": ...}, where "question" may be called '
    '"context", or {"prompt": ..., "expected": ...}'
)


@dataclass(frozen=True)
class Item:
    """A context, and texts that may follow it, of which `answer` is right: a completion has one."""

    line: int
    context: str
    choices: tuple[str, ...]
    answer: int

    @property
    def right(self) -> str:
        """The right choice's text."""
        return self.choices[self.answer]


@dataclass(frozen=True)
class Task:
    """A file of items of one kind."""

    name: str
    kind: Kind
    items: Sequence[Item]


def read_task(name: str) -> Task:
    """Read a task; ValueError, naming the line, for a malformed item or one of another kind."""
    items, kinds = [], []
    for number, line in enumerate(cut_lines(read_text(name)), 1):
        if line.strip():
            place = f"{name}: line {number:,}"
            kind, item = parse_item(parse_json(line, place), place, number)
            items.append(item)
            kinds.append(kind)
            if kind != kinds[0]:
                raise ValueError(f"{place}: has {kind}, but the lines before it have {kinds[0]}")
    if not items:
        raise ValueError(f"{name}: no items in it; {EXPECTED} on each line")
    return Task(str(Path(name)), kinds[0], items)


def parse_item(value: Json, place: str, line: int) -> tuple[Kind, Item]:
    """An item of a line's object; other keys are ignored."""
    if "expected" in value:
        prompt, expected = value.get("prompt"), value["expected"]
        if not isinstance(prompt, str) or not isinstance(expected, str) or not expected:
            raise ValueError(f"{place}: {EXPECTED}")
        return "completions", Item(line, prompt, (expected,), 0)
    context, choices = value.get("question", value.get("context")), value.get("choices")
    if (
        not isinstance(context, str)
        or not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice for choice in choices)
    ):
        raise ValueError(f"{place}: {EXPECTED}")
    answer = value.get("answer")
    if isinstance(answer, str) and choices.count(answer) == 1:
        answer = choices.index(answer)
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(
            f'{place}: "answer" is {answer!r:.60}; expected the number of a choice, the first of '
            "which is 0, or its text"
        )
    return "choices", Item(line, context, tuple(choices), answer)
