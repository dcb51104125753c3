"""The largest numbers of rows as long as a vocabulary, found without sorting the rows.

What is found is what torch's `argmax`, `topk` and `sort` find. On a CPU those look at one number
after another, which takes as long as a small model's step; numpy compares several at a time.
B rows, V numbers in each.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.float32]
# How many numbers of a row go on together as one when the largest are looked for.
BLOCK = 64


def find_largest(rows: Tensor) -> Tensor:
    """The place (B,) of the largest number of each row (B, V): of equal ones, the first."""
    if rows.device.type != "cpu":
        return rows.argmax(-1)
    return torch.from_numpy(rows.numpy().argmax(-1))


def rank_largest(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest numbers (B, count) of rows (B, V), largest first, and their places.

    Where equal numbers leave their order open, `topk` decides.
    """
    if rows.device.type == "cpu" and 0 < count <= rows.shape[1] // BLOCK:
        numbers = rows.numpy()
        found = [_list_places(row, _bound_largest(row, count)) for row in numbers]
        ranked = [row[places] for row, places in zip(numbers, found, strict=True)]
        # With those behind the last that is wanted, as it may be equal to one of them.
        if all((row[1:] < row[:-1]).all() for row in ranked):
            values, places = (np.stack([x[:count] for x in each]) for each in (ranked, found))
            return torch.from_numpy(values), torch.from_numpy(places)
    best = rows.topk(count)
    return best.values, best.indices


def find_places(row: Tensor, lowest: float) -> Tensor:
    """The places (1, W) of the numbers of a row (1, V) on the CPU from `lowest` up, largest first.

    Those of equal numbers are in the order of the row.
    """
    return torch.from_numpy(_list_places(row[0].numpy(), np.float32(lowest)))[None]


def sort_numbers(rows: Tensor) -> Tensor:
    """The numbers of rows (B, V) on the CPU, largest first, without their places."""
    return torch.from_numpy(np.sort(rows.numpy())[:, ::-1].copy())


def are_distinct(ranked: Tensor) -> bool:
    """Whether no numbers that follow each other in rows (B, W) are equal."""
    if ranked.device.type != "cpu":
        return not bool((ranked[:, 1:] == ranked[:, :-1]).any())
    numbers = ranked.numpy()
    return not bool((numbers[:, 1:] == numbers[:, :-1]).any())


def _bound_largest(row: Numbers, count: int) -> np.float32:
    """A number that at least `count` of a row reach: so many blocks have such a maximum."""
    num_blocks = len(row) // BLOCK
    maxima = row[: num_blocks * BLOCK].reshape(BLOCK, num_blocks).max(0)
    bound: np.float32 = np.partition(maxima, num_blocks - count)[num_blocks - count]
    return bound


def _list_places(row: Numbers, lowest: np.float32) -> NDArray[np.int64]:
    places = np.flatnonzero(row >= lowest)
    return places[np.argsort(-row[places], kind="stable")]
