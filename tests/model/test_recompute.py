"""What blocks keep for the backward pass changes memory and time, and no loss or gradient."""

import pytest
import torch
from torch import Tensor

from model.recompute import ActivationCheckpointing
from model.transformer import Transformer
from tests.live import Operators, count_kept_bytes
from tests.tiny import CONFIG, make_model

CHECKPOINTINGS: list[ActivationCheckpointing] = ["none", "selective", "full"]


def make_tokens() -> Tensor:
    return torch.randint(CONFIG.num_ids, (2, 31), generator=torch.Generator().manual_seed(1))


def find_gradients(model: Transformer) -> dict[str, Tensor]:
    """The gradients, and the loss as `loss`."""
    model.zero_grad()
    tokens = make_tokens()
    loss = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    found = {"loss": loss.detach()}
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        found[name] = weight.grad.clone()
    return found


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_no_gradient_changes_by_a_bit(
    checkpointing: ActivationCheckpointing, dtype: torch.dtype | None
) -> None:
    model = make_model()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        expected = find_gradients(model)
        model.activation_checkpointing = checkpointing
        found = find_gradients(model)
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[name]), name


@pytest.mark.parametrize("training", [True, False])
def test_selective_computes_no_product_again_and_full_all(training: bool) -> None:
    model = make_model().train(training)
    counts = {}
    for checkpointing in CHECKPOINTINGS:
        model.activation_checkpointing = checkpointing
        with Operators() as operators:
            find_gradients(model)
        counts[checkpointing] = operators.counts
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    layers = CONFIG.num_hidden_layers
    assert counts["none"][attention] == counts["selective"][attention] == layers
    assert counts["none"]["mm"] == counts["selective"]["mm"]
    assert counts["full"][attention] == (2 * layers if training else layers)
    assert counts["full"]["mm"] > counts["none"]["mm"] or not training
    assert counts["selective"]["silu"] == (2 * layers if training else layers)


@pytest.mark.filterwarnings("ignore")  # The compiler has its own.
def test_a_compiled_block_keeps_the_share_that_it_may() -> None:
    tokens = make_tokens()
    kept, gradients = {}, {}
    for budget in (None, 0.5, 0.0):
        torch._dynamo.reset()
        model = make_model()
        if budget is not None:
            model.activation_checkpointing = "selective"
        # As inductor cuts it, without the code generation.
        model.compile_blocks("aot_eager_decomp_partition", budget or 0.0)
        gradients[budget] = find_gradients(model)
        kept[budget] = count_kept_bytes(lambda: model(tokens[:, :-1], tokens[:, 1:]))  # noqa: B023
    fixed = sum(4 * weight.numel() for weight in model.parameters())
    assert kept[0.0] < kept[0.5] < kept[None] - 0.2 * (kept[None] - fixed)
    for name, expected in gradients[None].items():
        for budget in (0.5, 0.0):
            torch.testing.assert_close(gradients[budget][name], expected, atol=1e-6, rtol=1e-5)
