"""Matrix products without autograd, each by the fastest route its device offers.

On a CPU, torch multiplies fp32 matrices with MKL, which on AMD processors takes about twice as
long as oneDNN. Torch ships oneDNN too, but for plain fp32 tensors exposes it only as an operator
meant for its compiler; where that operator is missing, torch's own product is used.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

# For weights that fit in a core's cache, MKL is as fast and has less overhead.
MIN_ONEDNN_WEIGHTS = 2**18
# Numbers of a narrow weight that are widened at a time: they are still in the cache when used.
WIDENED_TOGETHER = 2**20


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., K) @ weight (N, K).T; falls back to F.linear where gradients are recorded.

    A weight narrower than x is widened: on a CPU a few rows at a time, else as a whole.
    """
    if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        if x.device.type == "cpu" and weight.numel() > WIDENED_TOGETHER:
            return _multiply_in_parts(x, weight)
        weight = weight.to(x.dtype)
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


def _multiply_in_parts(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., K) @ weight (N, K).T, without the widened weight ever being in memory."""
    size = max(1, WIDENED_TOGETHER // weight.shape[1])
    product = x.new_empty(*x.shape[:-1], len(weight))
    for start in range(0, len(weight), size):
        end = start + size
        product[..., start:end] = linear(x, weight[start:end].to(x.dtype))
    return product


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) @ b (K, N), summed and returned in fp32; half-precision factors only on CUDA."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return linear(a, b.T)


def as_factor(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix rounded to dtype, in the form that `multiply` expects.

    Off CUDA the rounded numbers are kept in fp32: this matches tensor cores (half-precision
    factors, fp32 sums), and a CPU multiplies fp16 many times more slowly than fp32.
    """
    rounded = matrix.to(dtype)
    return rounded if matrix.is_cuda else rounded.float()


def _find_onednn_linear() -> Callable[[Tensor, Tensor], Tensor] | None:
    """oneDNN's x @ weight.T, tried once; None if this torch build or processor lacks it."""

    def onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
        operator: Any = torch.ops.mkldnn._linear_pointwise
        return cast(Tensor, operator(x, weight, None, "none", [], ""))

    x, weight = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    try:
        works = torch.equal(onednn_linear(x, weight), F.linear(x, weight))
    except Exception:  # Builds and releases fail in different ways.
        return None
    return onednn_linear if works else None


_onednn_linear = _find_onednn_linear()
