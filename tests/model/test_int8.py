"""Weights as int8: no number is further off than half a step, and layers multiply with them."""

import pytest
import torch

from model.int8 import CHUNK, LARGEST, Int8Linear, dequantize, quantize
from model.pages import Pages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_weight_is_further_off_than_half_a_step(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(40, 24) * torch.logspace(-4, 2, 40)[:, None]).to(dtype)
    rows, scale = quantize(weight)
    assert (rows.dtype, scale.dtype) == (torch.int8, torch.float32)
    torch.testing.assert_close(scale, weight.float().abs().amax(1) / LARGEST)
    off = (dequantize(rows, scale) - weight.float()).abs()
    assert (off <= scale[:, None] * 0.5001).all()
    assert rows.abs().amax(1).tolist() == [LARGEST] * 40  # Each row uses its whole range.


def test_rows_of_zeros_and_of_the_smallest_numbers_stay_finite() -> None:
    weight = torch.zeros(3, 8)
    weight[1] = 1e-44
    rows, scale = quantize(weight)
    assert dequantize(rows, scale).isfinite().all()
    assert not rows[0].any()


def test_a_weight_is_the_same_whole_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight = torch.randn(37, 16)
    whole = quantize(weight)
    monkeypatch.setattr("model.int8.CHUNK", 16 * 5)
    assert weight.numel() < CHUNK
    for one, other in zip(whole, quantize(weight), strict=True):
        assert torch.equal(one, other)


def test_a_layer_multiplies_by_what_its_rows_stand_for() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(12, 32), torch.randn(2, 5, 32)
    layer = Int8Linear.of(weight, Pages())
    expected = x @ dequantize(layer.weight, layer.weight_scale).T
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x.bfloat16()).float(), expected, atol=0.2, rtol=0.05)
