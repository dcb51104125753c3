"""Few-shot tasks: other items with their right answers before each item, as in lm-eval.

Its `first_n` takes the first items of a file and, where that is the task's own, one more instead of
the item itself. Two line ends are between items (its `fewshot_delimiter`), and between a context
and its answer is what is there without shots, too.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from train.evaluation.items import Item, Task, read_task

BETWEEN = "\n\n"


@dataclass(frozen=True)
class Shots:
    """How many items stand before each, and which."""

    number: int
    # A file of them; None = the task's own.
    origin: str | None = None
    # Drawn for each item by this seed; None = the first ones.
    seed: int | None = None


def add_shots(task: Task, shots: Shots, delimiter: str) -> Task:
    """The task with shots in its items' contexts; ValueError if there are too few, or of a kind."""
    if not shots.number:
        return task
    pool = task if shots.origin is None else read_task(shots.origin)
    if pool.kind != task.kind:
        raise ValueError(
            f"{pool.name}: has {pool.kind}, but {task.name} has {task.kind}; expected the same kind"
        )
    places: dict[object, list[int]] = {}
    for place, other in enumerate(pool.items):
        places.setdefault(ask(other), []).append(place)
    items = []
    for item in task.items:
        others = leave_out(pool.items, places.get(ask(item), []))
        if len(others) < shots.number:
            raise ValueError(
                f"{pool.name}: has only {len(others):,} items besides that of line {item.line:,} "
                f"of {task.name}; {shots.number:,} shots need as many"
            )
        chosen = choose(others, shots, item)
        before = "".join(f"{o.context}{delimiter}{o.right}{BETWEEN}" for o in chosen)
        items.append(replace(item, context=before + item.context))
    return replace(task, items=items)


def ask(item: Item) -> object:
    """What an item asks, wherever it stands: equal for two that ask the same."""
    return item.context, item.choices, item.answer


def leave_out(items: Sequence[Item], places: Sequence[int]) -> list[Item]:
    """All items but those at these ascending places."""
    # Copied as a whole: a test of each would take minutes for ten thousand items.
    others = [*items]
    for place in reversed(places):
        del others[place]
    return others


def choose(others: Sequence[Item], shots: Shots, item: Item) -> Sequence[Item]:
    """The items before one; drawn ones depend on the seed and on its line alone."""
    if shots.seed is None:
        return others[: shots.number]
    return random.Random(f"{shots.seed}/{item.line}").sample(others, shots.number)
