"""Pairs of answers in a batch: found from the labels, on the device, without waiting for it.

A row holds whole pairs: prompt and chosen answer, then prompt and rejected answer. Each half begins
with a token labelled BEGIN, those of a rejected half are labelled REJECTED, and those of an answer
LOSS. Halves are counted through the batch, and things of halves are in tensors as long as the batch
has tokens, of which the first few are used: how many there are, only the device knows.

Nothing here adds to one place from several threads, as index_add does on a GPU: the order would
change from run to run, and with it the last bits of a sum.

B rows, T tokens of each, N = B * T.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from shards.chat.labels import BEGIN, REJECTED


@dataclass(frozen=True)
class Pairs:
    """Where the halves of a batch are, and which of them are pairs."""

    # (B, T) of int64: how many tokens of its half stand before each token.
    before: Tensor
    # (N,) of int64: the last tokens of the halves, in order, and all other tokens after them.
    lasts: Tensor
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
        sums, reach = values, 1
        while reach < values.shape[1]:
            # Those of `reach` tokens, each with that of as many tokens before, if its half has any.
            further = pad(sums, (reach, 0))[:, :-reach]
            sums = sums + further.where(self.before >= reach, 0)
            reach *= 2
        sums = sums.flatten()[self.lasts]  # Each place once: its gradient is a sum of one number.
        return sums, sums.roll(-1)


def find_pairs(labels: Tensor) -> Pairs:
    """The pairs of a batch with labels (B, T).

    >>> from shards.chat.labels import LOSS
    >>> row = [BEGIN, LOSS, BEGIN | REJECTED, REJECTED | LOSS, BEGIN, 0]  # A pair, and padding.
    >>> pairs = find_pairs(torch.tensor([row, row], dtype=torch.uint8))
    >>> pairs.before.tolist()
    [[0, 1, 0, 1, 0, 1], [0, 1, 0, 1, 0, 1]]
    >>> pairs.lasts[:6].tolist()
    [1, 3, 5, 7, 9, 11]
    >>> pairs.is_pair.nonzero().flatten().tolist()
    [0, 3]
    """
    begins = has(labels, BEGIN)
    begins[:, 0] = True
    columns = torch.arange(labels.shape[1], device=labels.device)
    before = columns - columns.where(begins, 0).cummax(1).values
    # The next token begins a half, or the row ends.
    is_last = begins.roll(-1, 1)
    lasts = is_last.flatten().to(torch.uint8).argsort(descending=True, stable=True)
    # Whether the half of each number is a rejected one: its first token says so.
    firsts = lasts - before.flatten()[lasts]
    is_rejected = has(labels, REJECTED).flatten()[firsts] & is_last.flatten()[lasts]
    # A batch begins with no rejected half, so nothing comes around to the last place.
    return Pairs(before, lasts, is_rejected.roll(-1))


def count_pairs(labels: Tensor) -> int:
    """How many pairs there are in labels (B, T), which are on the host."""
    return int((has(labels, BEGIN) & has(labels, REJECTED)).sum())


def has(labels: Tensor, bit: int) -> Tensor:
    """Which labels have a bit."""
    return (labels & bit) != 0
