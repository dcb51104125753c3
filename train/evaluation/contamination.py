"""Which items of a task are in a training set, word for word, by the set's index.

An item is found if a row of so many tokens of its text, the context with the right answer after
it, is in the train split, or all of a shorter text. Brown et al. 2020 (GPT-3, appendix C) take a
row of 13 words.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shards.format import Int64
from shards.index.passages import Finder
from shards.index.search import Spans
from shards.reader import open_shards
from shards.screen.lines import ReadProgress
from shards.tokenizer import encode_plainly
from train.evaluation.items import Item

# Items that are looked for together.
GROUP_ITEMS = 64


class Contamination:
    """Tells which items a training set holds.

    Raises ValueError with one line if the set has no index.
    """

    def __init__(self, folder: Path, num_tokens: int, delimiter: str) -> None:
        shards = open_shards(folder)
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
        spans = Spans(join(rows), join(starts), join(sizes))
        is_found = np.zeros(len(spans), np.bool_)
        for part in self.parts:
            is_found |= part.measure(spans) >= spans.sizes
        found = {*join(owners)[is_found].tolist()}
        return [number not in found for number in range(len(items))]

    def _encode(self, text: str) -> list[Int64]:
        """The ids of a text as a document begins with it and, if they differ, inside one."""
        forms = [text]
        if self.finder.takes_space and not text[:1].isspace():
            forms.append(f" {text}")
        return [np.array(encode_plainly(self.finder.tokenizer, form)) for form in forms]


def join(arrays: Sequence[Int64]) -> Int64:
    """Arrays one after another."""
    return np.concatenate(arrays).astype(np.int64)
