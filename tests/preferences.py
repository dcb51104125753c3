"""Made-up pairs of answers, and the rows and labels in which a run sees them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shards.chat.labels import BEGIN, LOSS, REJECTED
from tests.tiny import CONFIG

# Prompt, chosen and rejected answer.
Pair = tuple[list[int], list[int], list[int]]
# A token, and its label.
Labelled = tuple[int, int]


def make_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Pairs of random tokens: prompts of 3 to 7, answers of 1 to 5."""
    random = np.random.default_rng(seed)
    return [
        tuple(random.integers(1, CONFIG.num_ids, size).tolist() for size in sizes)  # type: ignore[misc]
        for sizes in random.integers((3, 1, 1), (8, 6, 6), (count, 3)).tolist()
    ]


def label_halves(pair: Pair) -> list[list[Labelled]]:
    """Prompt with chosen, and prompt with rejected answer, as tokens with labels."""
    prompt, chosen, rejected = pair
    halves = []
    for answer, side in ((chosen, 0), (rejected, REJECTED)):
        first, *rest = prompt
        half = [(first, BEGIN | side), *((token, side) for token in rest)]
        halves.append(half + [(token, LOSS | side) for token in answer])
    return halves


def stack(rows: Sequence[list[Labelled]], row_tokens: int, padding: int) -> tuple[Tensor, Tensor]:
    """Tokens and labels (B, T) of rows, which are padded with 0; that begins with this label."""
    padded = []
    for row in rows:
        missing = row_tokens - len(row)
        padded.append([*row, *[(0, padding), *missing * [(0, 0)]][:missing]])
    tokens, labels = torch.tensor(padded).unbind(-1)
    return tokens, labels.to(torch.uint8)


def pack(pairs: Sequence[Pair], row_tokens: int) -> tuple[Tensor, Tensor]:
    """Whole pairs, one after another, as in a packed set."""
    rows: list[list[Labelled]] = [[]]
    for pair in pairs:
        both = [entry for half in label_halves(pair) for entry in half]
        if len(rows[-1]) + len(both) > row_tokens:
            rows.append([])
        rows[-1] += both
    return stack(rows, row_tokens, BEGIN)


def lay_out(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Each half in a row of its own, so that no row has two documents."""
    rows = [half for pair in pairs for half in label_halves(pair)]
    return stack(rows, max(map(len, rows)), 0)
