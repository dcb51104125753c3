"""Matrix products are the same by every route, and gradients never take the one without any."""

import pytest
import torch
import torch.nn.functional as F

from model import products
from model.products import MIN_ONEDNN_WEIGHTS, as_factor, linear, multiply

SIZES = [(1, 512, 512), (3, 700, 400), (200, 300, 900), (5, 8, 3)]


@pytest.mark.parametrize(("num_rows", "in_size", "out_size"), SIZES)
def test_linear_is_torchs(num_rows: int, in_size: int, out_size: int) -> None:
    x, weight = torch.randn(2, num_rows, in_size), torch.randn(out_size, in_size)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("num_rows", "in_size", "out_size"), SIZES)
def test_multiply_takes_any_strides(num_rows: int, in_size: int, out_size: int) -> None:
    a, b = torch.randn(num_rows, in_size), torch.randn(in_size, out_size)
    for left in (a, a.T.contiguous().T):
        for right in (b, b.T.contiguous().T):
            with torch.no_grad():
                torch.testing.assert_close(multiply(left, right), a @ b, atol=1e-3, rtol=1e-4)


def test_linear_records_gradients() -> None:
    x, weight = torch.randn(2, 512), torch.randn(512, 512, requires_grad=True)
    assert weight.numel() >= MIN_ONEDNN_WEIGHTS
    linear(x, weight).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, x.sum(0).expand(512, 512))


def test_linear_follows_autocast() -> None:
    x, weight = torch.randn(2, 512), torch.randn(512, 512)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    with torch.no_grad():
        assert linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16


def test_linear_does_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(2, 512), torch.randn(512, 512)
    monkeypatch.setattr(products, "_onednn_linear", None)
    with torch.no_grad():
        assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_a_missing_or_wrong_operator_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.ops.mkldnn, "_linear_pointwise", raising=False)
    for wrong in (lambda *_: torch.zeros(2, 4), lambda: torch.zeros(2, 4)):
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", wrong, raising=False)
        assert products._find_onednn_linear() is None


def test_factors_are_rounded_once() -> None:
    matrix = torch.tensor([1.0, 1.0 + 2**-12])
    assert as_factor(matrix, torch.float16).tolist() == [1.0, 1.0]
    assert as_factor(matrix, torch.float16).dtype == torch.float32
    assert torch.equal(as_factor(matrix, torch.float32), matrix)
