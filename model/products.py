"""Matrix products without autograd, each on the fastest way that its device has.

On a CPU, torch multiplies fp32 matrices with MKL, which on AMD processors takes about twice as
long as oneDNN does. Torch contains oneDNN too, but offers it for plain fp32 tensors only to its
compiler, as an operator; where that operator is missing, torch's own product takes its place.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

# Weights that stay in a core's cache are multiplied as fast by MKL, with less ado.
MIN_ONEDNN_WEIGHTS = 2**18


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., K) @ weight (N, K).T; as F.linear, which takes over where gradients are recorded."""
    if (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.numel() >= MIN_ONEDNN_WEIGHTS
        and _onednn_linear is not None
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    ):
        return _onednn_linear(x, weight)
    return F.linear(x, weight)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) @ b (K, N), summed and returned in fp32; half factors only on CUDA."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return linear(a, b.T)


def as_factor(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix rounded to dtype, as `multiply` takes it.

    Off CUDA the rounded numbers are carried in fp32: that is what tensor cores compute (half
    factors, fp32 sums), and a CPU multiplies fp16 many times more slowly than fp32.
    """
    rounded = matrix.to(dtype)
    return rounded if matrix.is_cuda else rounded.float()


def _find_onednn_linear() -> Callable[[Tensor, Tensor], Tensor] | None:
    """oneDNN's x @ weight.T, tried once; None where this torch or processor has none."""

    def onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
        operator: Any = torch.ops.mkldnn._linear_pointwise
        return cast(Tensor, operator(x, weight, None, "none", [], ""))

    x, weight = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    try:
        works = torch.equal(onednn_linear(x, weight), F.linear(x, weight))
    except Exception:  # Whatever a build or a release may say instead of computing.
        return None
    return onednn_linear if works else None


_onednn_linear = _find_onednn_linear()
