"""The loss of each target, to be differentiated with weights that depend on them all."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.logits.chunks import VOCABULARY_MULTIPLE
from model.logits.differentiate import (
    Differentiate,
    differentiate_for_compiler,
    differentiate_in_place,
)
from model.loss import IGNORED, chunked_cross_entropy, lose_each
from tests.live import LiveBytes
from tests.model.test_loss import LOSS_SCALE, make_inputs, relative_error

Found = tuple[Tensor, Tensor, Tensor]  # losses, dhidden, dweight


def weigh(losses: Tensor) -> Tensor:
    """A number to which targets contribute unlike each other, as they do to DPO's loss."""
    signs = torch.where(torch.arange(losses.numel()) % 2 == 0, 1.0, -0.5).view(losses.shape)
    return -F.logsigmoid((losses * signs).sum() / losses.numel())


def run_ours(inputs: tuple[Tensor, ...], scale: float = 1.0, *options: object) -> Found:
    """Scaled, differentiated and unscaled as a trainer does it."""
    hidden, weight, targets = inputs
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    losses = lose_each(hidden, weight, targets, *options)  # type: ignore[arg-type]
    (weigh(losses) * scale).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return losses.detach(), hidden.grad.float() / scale, weight.grad / scale


def run_naive(inputs: tuple[Tensor, ...]) -> Found:
    """The same with all logits in memory."""
    hidden, weight, targets = inputs
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = (hidden @ weight.T).flatten(0, -2)
    losses = F.cross_entropy(logits, targets.flatten(), reduction="none", ignore_index=IGNORED)
    losses = losses.view(targets.shape)
    weigh(losses).backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert weight.grad is not None
    return losses.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("differentiate", [differentiate_in_place, differentiate_for_compiler])
@pytest.mark.parametrize(
    ("num_tokens", "chunk_tokens"), [(1, None), (7, 1), (128, 128), (129, 128), (300, 77)]
)
def test_losses_and_gradients_are_those_of_the_whole_logits(
    num_tokens: int,
    chunk_tokens: int | None,
    differentiate: Differentiate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(VOCABULARY_MULTIPLE, "cpu", 64)
    inputs = make_inputs(num_tokens, 32, 1001)
    for scale in (1.0, LOSS_SCALE):
        found = run_ours(inputs, scale, chunk_tokens, differentiate)
        for ours, naive in zip(found, run_naive(inputs), strict=True):
            assert relative_error(ours, naive) < 2e-6


def test_what_is_ignored_has_no_loss_and_no_gradient() -> None:
    hidden, weight, targets = make_inputs(60, 8, 33)
    targets[::3] = IGNORED
    inputs = hidden.view(3, 20, 8), weight, targets.view(3, 20)
    found = run_ours(inputs, 1.0, 7)
    assert found[0].shape == (3, 20)
    assert not found[0].flatten()[::3].any()
    assert not found[1].view(60, 8)[::3].any()
    for ours, naive in zip(found, run_naive(inputs), strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-5, atol=1e-7)


def test_gradients_in_fp16_have_the_loss_scale_before_they_are_rounded() -> None:
    """Without it, they are too small for fp16."""
    hidden, weight, targets = make_inputs(4096, 16, 64, weight_scale=4e-5)
    half = hidden.half()
    expected = run_naive((half.float(), weight, targets))
    with torch.autocast("cpu", torch.float16):
        unscaled = run_ours((half, weight, targets))
        found = run_ours((half, weight, targets), LOSS_SCALE)
    assert found[0].dtype == torch.float32
    assert relative_error(found[0], expected[0]) < 1e-5
    assert unscaled[1].abs().max() == 0
    for ours, naive in zip(found[1:], expected[1:], strict=True):
        assert relative_error(ours, naive) < 1e-3


def test_a_chunks_logits_are_in_memory_once() -> None:
    """In the backward pass, too; and nothing is kept from the forward pass but its inputs."""
    inputs = make_inputs(512, 16, 4001)
    with LiveBytes() as live:
        run_ours(inputs, 1.0, 128)
    logits, head = 4 * 128 * 4001, 4 * 16 * 4001
    assert logits < live.peak < 1.1 * logits + 4 * head


@pytest.mark.parametrize("is_each", [False, True])
def test_a_frozen_head_has_no_gradient_and_costs_no_product(is_each: bool) -> None:
    hidden, weight, targets = make_inputs(300, 32, 1001)
    gradients = []
    for is_frozen in (False, True):
        inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_(not is_frozen)
        with FlopCounterMode(display=False) as counted:
            lose = lose_each if is_each else chunked_cross_entropy
            lose(*inputs, targets, chunk_tokens=77).mean().backward()
        products = counted.get_total_flops() / (2 * 300 * 32 * 1001)
        assert products == (3 if is_each else 2) + (not is_frozen)
        assert (inputs[1].grad is None) == is_frozen
        gradients.append(inputs[0].grad)
    assert torch.equal(*gradients)


def test_without_gradients_losses_are_the_same_bit_for_bit() -> None:
    inputs = make_inputs(300, 32, 1001)
    with torch.no_grad():
        losses = lose_each(inputs[0], inputs[1].clone().requires_grad_(), inputs[2], 77)
    assert not losses.requires_grad
    assert torch.equal(losses, run_ours(inputs, 1.0, 77)[0])
