"""The chunked loss and its gradients are those of the whole logits, in every precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from model.logits.chunks import MAX_LOGITS_BYTES, VOCABULARY_MULTIPLE, choose_chunk_tokens
from model.logits.differentiate import (
    Differentiate,
    compile_differentiate,
    differentiate_for_compiler,
    differentiate_in_place,
)
from model.loss import _compute, chunked_cross_entropy
from tests.live import LiveBytes

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
    grad_scale: Tensor | float = 1.0,
    chunk_tokens: int | None = None,
    differentiate: Differentiate = differentiate_in_place,
    has_ignored: bool = False,
) -> Gradients:
    """Scale, differentiate and unscale as a trainer does."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    options = chunk_tokens, differentiate, 0.0, has_ignored
    loss = chunked_cross_entropy(hidden, weight, targets, grad_scale, *options)
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


@pytest.mark.parametrize("loss_scale", [1.0, 24.0, LOSS_SCALE])
def test_a_scale_on_the_device_is_as_good_as_a_number(loss_scale: float) -> None:
    """Bit for bit where the scale is a power of two, as fp16's is above its floor."""
    inputs = make_inputs(300, 32, 1001)
    number = run_chunked(*inputs, loss_scale / 8, 77)
    on_device = run_chunked(*inputs, torch.tensor(loss_scale) / 8, 77)
    for found, expected in zip(on_device, number, strict=True):
        assert torch.equal(found, expected) or loss_scale == 24.0
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_compilers_form_gives_the_same_numbers(dtype: torch.dtype) -> None:
    hidden, weight, targets = make_inputs(300, 32, 1001)
    logits, scale = F.linear(hidden, weight) * 3.0, torch.tensor(LOSS_SCALE / 300)
    fused, dlogits = differentiate_for_compiler(logits, targets, scale, dtype)
    plain, expected = differentiate_in_place(logits.clone(), targets, scale, dtype)
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-6)
    assert dlogits is not None
    assert expected is not None
    assert dlogits.dtype == expected.dtype == dtype
    # A rounding apart, where it falls on the other side.
    assert relative_error(dlogits.float(), expected.float()) < 1e-6 + torch.finfo(dtype).eps / 16
    fused, nothing = differentiate_for_compiler(logits, targets, None, dtype)
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-6)
    assert nothing is None


@pytest.mark.filterwarnings("ignore")  # The compiler has its own.
@pytest.mark.parametrize("has_ignored", [False, True])
def test_chunks_of_all_sizes_are_compiled_once(has_ignored: bool) -> None:
    torch._dynamo.reset()
    graphs: list[list[object]] = []

    def count(graph: torch.fx.GraphModule, inputs: list[object]) -> torch.fx.GraphModule:
        graphs.append(inputs)
        return graph

    inputs = make_inputs(300, 32, 1001)
    differentiate = compile_differentiate(count)  # type: ignore[arg-type]
    options = {"has_ignored": has_ignored}
    # Three of 77 tokens, one of 69.
    found = run_chunked(*inputs, LOSS_SCALE, 77, differentiate, **options)
    again = run_chunked(*inputs, LOSS_SCALE, 131, differentiate, **options)
    assert len(graphs) == 1
    expected = run_chunked(*inputs, LOSS_SCALE, 77, differentiate_for_compiler, **options)
    for ours, plain, other in zip(found, expected, again, strict=True):
        assert torch.equal(ours, plain)
        assert relative_error(other, plain) < 1e-6


def test_a_chunks_logits_are_in_memory_once() -> None:
    inputs = make_inputs(512, 16, 4001)
    with LiveBytes() as live:
        run_chunked(*inputs, chunk_tokens=128)
    logits, head = 4 * 128 * 4001, 4 * 16 * 4001
    # The clones of the test, the head's gradient and what a chunk adds to it.
    assert logits < live.peak < 1.1 * logits + 4 * head


def test_memory_of_the_default_model_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A micro-step of 8,192 tokens in fp16, as tensors that have a device and no memory."""
    # torch's own methods would ask for the device.
    copy, clone = torch.ops.aten.copy_.default, torch.ops.aten.clone.default
    monkeypatch.setattr(Tensor, "copy_", lambda tensor, source: copy(tensor, source))
    monkeypatch.setattr(
        Tensor, "contiguous", lambda tensor: clone(tensor, memory_format=torch.contiguous_format)
    )
    with FakeTensorMode(), torch.device("cuda"):
        hidden = torch.empty(8192, 2048, dtype=torch.float16)
        weight, targets = torch.empty(50257, 2048), torch.empty(8192, dtype=torch.int64)
        chunk_tokens = choose_chunk_tokens(8192, weight)
        with LiveBytes() as live:
            _compute(hidden, weight, targets, 1.0, chunk_tokens, differentiate_in_place)
    head, logits = 50304 * 2048, 4096 * 50304
    hidden_bytes = 2 * 8192 * 2048
    # The head in half and its gradient; a chunk's logits and their gradient in half.
    exact = (2 + 4) * head + (4 + 2) * logits + hidden_bytes
    assert live.peak == pytest.approx(exact, rel=0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_cuda_equals_the_cpu(dtype: torch.dtype, is_compiled: bool) -> None:
    hidden, weight, targets = make_inputs(300, 64, 1001, weight_scale=0.2)
    results = []
    for device in ("cpu", "cuda"):
        on_device = [tensor.to(device) for tensor in (hidden.to(dtype), weight, targets)]
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            differentiate: Differentiate = differentiate_in_place
            if is_compiled and device == "cuda":
                differentiate = torch.compile(differentiate_for_compiler)
            results.append(run_chunked(*on_device, LOSS_SCALE, 128, differentiate))
    for cpu, cuda in zip(*results, strict=True):
        assert relative_error(cuda.cpu(), cpu) < 2e-3


@pytest.mark.parametrize("differentiate", [differentiate_in_place, differentiate_for_compiler])
@pytest.mark.parametrize(("num_tokens", "chunk_tokens"), [(7, 1), (300, 77), (300, None)])
def test_the_z_loss_and_its_gradient_are_those_of_the_formula(
    num_tokens: int, chunk_tokens: int | None, differentiate: Differentiate
) -> None:
    """Computed beside the loss, differentiated with it; the loss itself does not change."""
    hidden, weight, targets = make_inputs(num_tokens, 16, 257)
    z_loss, scale = 0.03, 8.0
    plain = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    logits = F.linear(*plain)
    expected = z_loss * logits.logsumexp(-1).square().mean()
    cross_entropy = F.cross_entropy(logits, targets)
    (cross_entropy + expected).backward()  # type: ignore[no-untyped-call]
    ours = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    losses = chunked_cross_entropy(*ours, targets, scale, chunk_tokens, differentiate, z_loss)
    (losses.sum() * scale).backward()
    torch.testing.assert_close(losses, torch.stack([cross_entropy, expected]))
    without = chunked_cross_entropy(hidden, weight, targets, scale, chunk_tokens, differentiate)
    assert losses[0].item() == pytest.approx(without.item(), rel=1e-6)
    for found, other in zip(ours, plain, strict=True):
        assert found.grad is not None
        assert other.grad is not None
        assert relative_error(found.grad / scale, other.grad) < 2e-6
    with torch.no_grad():
        evaluated = chunked_cross_entropy(*ours, targets, 1.0, chunk_tokens, differentiate, z_loss)
    assert torch.equal(evaluated, losses)


def test_the_z_losss_gradient_in_fp16_is_scaled_before_it_is_rounded() -> None:
    hidden, weight, targets = make_inputs(300, 32, 1001)
    plain = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    logits = F.linear(*plain)
    loss = F.cross_entropy(logits, targets) + 1e-2 * logits.logsumexp(-1).square().mean()
    loss.backward()
    ours = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    with torch.autocast("cpu", torch.float16):
        losses = chunked_cross_entropy(*ours, targets, LOSS_SCALE, z_loss=1e-2)
    (losses.sum() * LOSS_SCALE).backward()
    for found, other in zip(ours, plain, strict=True):
        assert found.grad is not None
        assert other.grad is not None
        assert relative_error(found.grad / LOSS_SCALE, other.grad) < 2e-3
