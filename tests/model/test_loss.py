"""The chunked loss and its gradients are those of the whole logits, in every precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.loss import (
    MAX_LOGITS_BYTES,
    VOCABULARY_MULTIPLE,
    choose_chunk_tokens,
    chunked_cross_entropy,
)

LOSS_SCALE = 65536.0

Gradients = tuple[Tensor, Tensor, Tensor]  # loss, dhidden, dweight


def make_inputs(
    num_tokens: int, hidden_size: int, vocab_size: int, weight_scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, hidden_size, generator=generator)
    weight = torch.randn(vocab_size, hidden_size, generator=generator) * weight_scale
    targets = torch.randint(vocab_size, (num_tokens,), generator=generator)
    return hidden, weight, targets


def run_chunked(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    grad_scale: float = 1.0,
    chunk_tokens: int | None = None,
) -> Gradients:
    """Scale, differentiate and unscale as a trainer does."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = chunked_cross_entropy(hidden, weight, targets, grad_scale, chunk_tokens)
    (loss * grad_scale).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return loss.detach(), hidden.grad.float() / grad_scale, weight.grad / grad_scale


def run_plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Gradients:
    """The same by torch's own functions, with all logits in memory."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = F.cross_entropy(F.linear(hidden, weight).float(), targets)
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return loss.detach(), hidden.grad.float(), weight.grad


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("grad_scale", [1.0, 3.7, LOSS_SCALE])
@pytest.mark.parametrize(
    ("num_tokens", "hidden_size", "vocab_size", "chunk_tokens"),
    [
        (1, 8, 5, None),
        (7, 3, 33, 1),
        (128, 16, 257, 128),  # one chunk, exactly
        (129, 16, 257, 128),  # and one token more
        (300, 32, 1001, 77),
        (300, 32, 1001, 10_000),
    ],
)
def test_fp32_equals_plain_cross_entropy(
    num_tokens: int,
    hidden_size: int,
    vocab_size: int,
    chunk_tokens: int | None,
    grad_scale: float,
) -> None:
    inputs = make_inputs(num_tokens, hidden_size, vocab_size)
    found = run_chunked(*inputs, grad_scale, chunk_tokens)
    for ours, plain in zip(found, run_plain(*inputs), strict=True):
        assert relative_error(ours, plain) < 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 5e-3)])
def test_autocast_gradients_stay_close_to_fp32(dtype: torch.dtype, tolerance: float) -> None:
    hidden, weight, targets = make_inputs(300, 32, 1001, weight_scale=0.2)
    expected = run_plain(hidden.to(dtype).float(), weight, targets)
    with torch.autocast("cpu", dtype):
        found = run_chunked(hidden.to(dtype), weight, targets, LOSS_SCALE, 77)
    assert found[0].dtype == torch.float32
    for ours, plain in zip(found, expected, strict=True):
        assert relative_error(ours, plain) < tolerance


def test_grad_scale_saves_fp16_gradients_that_vanish_without_it() -> None:
    hidden, weight, targets = make_inputs(8192, 16, 64, weight_scale=4e-5)
    half = hidden.half()
    expected = run_plain(half.float(), weight, targets)
    plain = run_plain(half, weight.half(), targets)
    unscaled = run_chunked(half, weight, targets, grad_scale=1.0)
    scaled = run_chunked(half, weight, targets, grad_scale=LOSS_SCALE)
    assert expected[1].abs().max() > 0
    assert plain[1].abs().max() == 0
    assert unscaled[1].abs().max() == 0
    assert relative_error(scaled[1], expected[1]) < 1e-3
    assert relative_error(scaled[2], expected[2]) < 1e-3


def test_gradients_follow_what_the_loss_is_multiplied_by() -> None:
    hidden, weight, targets = make_inputs(20, 8, 33)
    hidden.requires_grad_()
    chunked_cross_entropy(hidden, weight, targets, grad_scale=8.0).mul(2.0).backward()
    assert hidden.grad is not None
    expected = 2.0 * run_plain(hidden.detach(), weight, targets)[1]
    torch.testing.assert_close(hidden.grad, expected)


def test_a_second_backward_is_refused() -> None:
    hidden, weight, targets = make_inputs(20, 8, 33)
    loss = chunked_cross_entropy(hidden.requires_grad_(), weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_extreme_logits_give_a_finite_loss() -> None:
    weight = torch.eye(2)
    hidden = torch.tensor([[1e4, -1e4]])
    loss, dhidden, _ = run_chunked(hidden, weight, torch.tensor([1]))
    assert loss.item() == pytest.approx(2e4)
    torch.testing.assert_close(dhidden, torch.tensor([[1.0, -1.0]]))


def test_without_gradients_the_loss_is_the_same_bit_for_bit() -> None:
    inputs = make_inputs(300, 32, 1001)
    trained = run_chunked(*inputs, LOSS_SCALE, 77)[0]
    hidden, weight, targets = inputs
    with torch.no_grad():
        evaluated = chunked_cross_entropy(hidden, weight.requires_grad_(), targets, 1.0, 77)
    assert not evaluated.requires_grad
    assert torch.equal(trained, evaluated)


def test_batches_of_rows_are_taken_as_one_row() -> None:
    hidden, weight, targets = make_inputs(60, 8, 33)
    flat = chunked_cross_entropy(hidden, weight, targets)
    rows = chunked_cross_entropy(hidden.view(3, 20, 8), weight, targets.view(3, 20))
    assert torch.equal(flat, rows)


def test_padding_the_vocabulary_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(300, 32, 1001)
    expected = run_plain(*inputs)
    monkeypatch.setitem(VOCABULARY_MULTIPLE, "cpu", 64)
    found = run_chunked(*inputs, LOSS_SCALE, 77)
    assert found[2].shape == (1001, 32)
    for ours, plain in zip(found, expected, strict=True):
        assert relative_error(ours, plain) < 1e-6


@pytest.mark.parametrize("num_tokens", [1, 127, 2048, 16_384, 1_000_003])
def test_chunks_stay_within_the_memory_bound(num_tokens: int) -> None:
    weight = torch.empty(50_257, 1)
    chunk_tokens = choose_chunk_tokens(num_tokens, weight)
    assert chunk_tokens % 128 == 0
    assert chunk_tokens * 50_257 * 4 <= MAX_LOGITS_BYTES["cpu"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_cuda_equals_the_cpu(dtype: torch.dtype) -> None:
    hidden, weight, targets = make_inputs(300, 64, 1001, weight_scale=0.2)
    results = []
    for device in ("cpu", "cuda"):
        on_device = [tensor.to(device) for tensor in (hidden.to(dtype), weight, targets)]
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            results.append(run_chunked(*on_device, LOSS_SCALE, 128))
    for cpu, cuda in zip(*results, strict=True):
        assert relative_error(cuda.cpu(), cpu) < 2e-3
