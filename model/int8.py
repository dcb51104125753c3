"""Weights as 8-bit integers with a scale for each row: a quarter of fp32's bytes.

weight[n, k] is about int8[n, k] * scale[n], where scale[n] = max over k of |weight[n, k]|, / 127:
symmetric, one scale for each output of a layer, and only weights, as activations stay as they are.
Checkpoints hold them so (model/checkpoints/int8.py), and `Int8Linear` computes with them.

N outputs, K inputs of a layer.
"""

from typing import Self

import torch
from torch import Tensor, nn

from model.pages import Pages
from model.products import linear

LARGEST = 127  # Not -128: the numbers are symmetric about 0.
# Numbers that are widened at a time, so that no second copy of a large weight is ever in memory.
CHUNK = 2**22


@torch.no_grad()
def quantize(weight: Tensor, pages: Pages | None = None) -> tuple[Tensor, Tensor]:
    """A weight (N, K) of any floating-point dtype as int8 (N, K) and its scales (N,) in fp32.

    The int8 numbers are in memory of `pages`, if given.

    >>> rows, scale = quantize(torch.tensor([[0.5, -1.0, 0.25]]))
    >>> rows.tolist(), round(float(scale[0]), 6)
    ([[64, -127, 32]], 0.007874)
    """
    rows = (pages or Pages()).empty(weight.shape, torch.int8, weight.device)
    scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    step = max(1, CHUNK // max(1, weight.shape[1]))
    smallest = torch.finfo(torch.float32).tiny  # A row of zeros is divided by it.
    for start in range(0, len(weight), step):
        wide = weight[start : start + step].float()
        found = (wide.abs().amax(1) / LARGEST).clamp_min(smallest)
        scale[start : start + step] = found
        rows[start : start + step] = (wide / found[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return rows, scale


def dequantize(rows: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """What int8 rows (N, K) with scales (N,) stand for: a weight (N, K)."""
    return (rows.float() * scale[:, None]).to(dtype)


class Int8Rows(nn.Module):
    """A weight as int8 rows (N, K) with scales (N,); it only predicts."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, weight: Tensor, weight_scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)

    @classmethod
    def of(cls, weight: Tensor, pages: Pages) -> Self:
        """What stands for a layer or an embedding with this weight (N, K)."""
        return cls(*quantize(weight, pages))


class Int8Linear(Int8Rows):
    """x @ weight.T, without a bias; a scale meets the sums, not the weights."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight) * self.weight_scale.to(x.dtype)


class Int8Embedding(Int8Rows):
    """Rows of fp32 by their numbers; a head may have the same weight."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.weight[tokens].float() * self.weight_scale[tokens][..., None]
