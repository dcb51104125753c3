"""Which items of a task, and tokens of a text, are in a training set word for word, by its index.

An item is found if a row of so many tokens of its text, the context with the right answer after
it, is in the train split, or all of a shorter text. Brown et al. 2020 (GPT-3, appendix C) take a
row of 13 words. Of a text, the tokens of all such rows are found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.format import Int64
from shards.index.passages import Finder
from shards.index.search import Spans
from shards.reader import open_shards
from shards.screen.lines import ReadProgress
from shards.tokenizer import encode_plainly
from train.evaluation.items import Item

# Items, and rows of a text, that are looked for together.
GROUP_ITEMS = 64
GROUP_ROWS = 1 << 16


@dataclass(frozen=True)
class Seen:
    """A text in the tokens of a set, and which of them are in rows that its train split has."""

    folder: Path
    ids: Int64
    marks: npt.NDArray[np.bool_]


class Contamination:
    """Tells which items, and which tokens of a text, a training set holds.

    Raises ValueError with one line if the set has no index.
    """

    def __init__(self, folder: Path, num_tokens: int, delimiter: str) -> None:
        shards = open_shards(folder)
        self.folder = folder
        self.dataset_id = shards.manifest.dataset_id
        self.finder = Finder(shards)
        self.parts = [part for part in self.finder.index.parts if part.split == "train"]
        self.num_tokens = num_tokens
        self.delimiter = delimiter

    def find_clean(self, items: Sequence[Item]) -> list[bool]:
        """Whether each item is not in the set."""
        clean: list[bool] = []
        progress = ReadProgress("items", len(items))
        for first in range(0, len(items), GROUP_ITEMS):
            group = items[first : first + GROUP_ITEMS]
            clean += self._find_clean(group)
            progress.add(len(group))
        progress.finish()
        return clean

    def _find_clean(self, items: Sequence[Item]) -> list[bool]:
        rows, starts, sizes, owners = [], [], [], []
        before = 0
        for number, item in enumerate(items):
            for row in self._encode(f"{item.context}{self.delimiter}{item.right}"):
                size = min(self.num_tokens, len(row))
                count = len(row) - size + 1
                rows.append(row)
                starts.append(before + np.arange(count))
                sizes.append(np.full(count, size))
                owners.append(np.full(count, number))
                before += len(row)
        is_found = self._holds(Spans(join(rows), join(starts), join(sizes)))
        found = {*join(owners)[is_found].tolist()}
        return [number not in found for number in range(len(items))]

    def find_seen(self, text: str) -> Seen:
        """Which tokens of a text are in the set, as a document begins with them."""
        ids = np.array(encode_plainly(self.finder.tokenizer, text), np.int64)
        size = min(self.num_tokens, len(ids))
        starts = np.arange(len(ids) - size + 1)
        progress = ReadProgress("rows of tokens", len(starts))
        # How many rows begin at a token, less those that end before it.
        steps = np.zeros(len(ids) + 1, np.int64)
        for first in range(0, len(starts) if size else 0, GROUP_ROWS):
            group = starts[first : first + GROUP_ROWS]
            found = group[self._holds(Spans(ids, group, np.full(len(group), size)))]
            steps[found] += 1
            steps[found + size] -= 1
            progress.add(len(group))
        progress.finish()
        return Seen(self.folder, ids, np.cumsum(steps)[:-1] > 0)

    def _holds(self, spans: Spans) -> npt.NDArray[np.bool_]:
        """Which spans are in the set as a whole."""
        is_found = np.zeros(len(spans), np.bool_)
        for part in self.parts:
            is_found |= part.measure(spans) >= spans.sizes
        return is_found

    def _encode(self, text: str) -> list[Int64]:
        """The ids of a text as a document begins with it and, if they differ, inside one."""
        forms = [text]
        if self.finder.takes_space and not text[:1].isspace():
            forms.append(f" {text}")
        return [np.array(encode_plainly(self.finder.tokenizer, form)) for form in forms]


def join(arrays: Sequence[Int64]) -> Int64:
    """Arrays one after another."""
    return np.concatenate(arrays).astype(np.int64)
