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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("together", [1, 5000, 2**20])
def test_narrow_weights_are_widened_in_parts(
    dtype: torch.dtype, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = torch.randn(2, 3, 900), (100 * torch.randn(700, 900)).to(dtype)
    monkeypatch.setattr(products, "WIDENED_TOGETHER", together)
    widened: list[int] = []
    monkeypatch.setattr(
        products, "linear", lambda x, w: (widened.append(w.numel()), linear(x, w))[1]
    )
    found = products._multiply_in_parts(x, weight) if together == 1 else linear(x, weight)
    torch.testing.assert_close(found, F.linear(x, weight.float()), atol=0.1, rtol=1e-4)
    assert max(widened, default=0) <= max(together, 900)
    assert sum(widened) == (weight.numel() if together < weight.numel() else 0)
