"""Pairs of answers in a batch: found from the labels, on the device, without waiting for it.

A row holds whole pairs: prompt and chosen answer, then prompt and rejected answer. Each half begins
with a token labelled BEGIN, those of a rejected half are labelled REJECTED, and those of an answer
LOSS. Halves are counted through the batch, and things of halves are in tensors as long as the batch
has tokens, of which the first few are used: how many there are, only the device knows.

B rows, T tokens of each, N = B * T.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shards.chat.labels import BEGIN, REJECTED


@dataclass(frozen=True)
class Pairs:
    """Which half each token belongs to, and which halves are pairs."""

    # (N,) of int64: the half of each token, counted through the batch.
    halves: Tensor
    # (N,) of bool: whether half h is a chosen one, which a pair begins with; its rejected one is
    # half h + 1.
    is_pair: Tensor

    @property
    def count(self) -> Tensor:
        """How many there are, 0-dim."""
        return self.is_pair.sum()

    def add_up(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of values (B, T) over the halves of each pair: chosen, rejected, (N,) each.

        They are right where `is_pair` says so.
        """
        sums = values.new_zeros(len(self.halves)).index_add(0, self.halves, values.flatten())
        return sums, sums.roll(-1)


def find_pairs(labels: Tensor) -> Pairs:
    """The pairs of a batch with labels (B, T).

    >>> from shards.chat.labels import LOSS
    >>> row = [BEGIN, LOSS, BEGIN | REJECTED, REJECTED | LOSS, BEGIN, 0]  # A pair, and padding.
    >>> pairs = find_pairs(torch.tensor([row, row], dtype=torch.uint8))
    >>> pairs.halves.tolist()
    [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    >>> pairs.is_pair.nonzero().flatten().tolist()
    [0, 3]
    """
    begins = has(labels, BEGIN)
    begins[:, 0] = True
    begins = begins.flatten()
    halves = begins.cumsum(0) - 1
    # Whether the half of each number is a rejected one: its first token says so.
    firsts = (has(labels, REJECTED).flatten() & begins).to(torch.int32)
    is_rejected = torch.zeros_like(firsts).index_add(0, halves, firsts) > 0
    # A batch begins with no rejected half, so nothing comes around to the last place.
    return Pairs(halves, is_rejected.roll(-1))


def count_pairs(labels: Tensor) -> int:
    """How many pairs there are in labels (B, T), which are on the host."""
    return int((has(labels, BEGIN) & has(labels, REJECTED)).sum())


def has(labels: Tensor, bit: int) -> Tensor:
    """Which labels have a bit."""
    return (labels & bit) != 0
