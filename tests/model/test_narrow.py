"""Weights that are kept narrower: rounded once, the same with and without model/rows.py."""

from dataclasses import replace

import pytest
import torch

from model import narrow
from model.config import ModelConfig
from model.narrow import KEPT, Kept, choose_products, round_weights
from model.rows import find_rows
from model.transformer import Transformer
from tests.tiny import CONFIG

TOKENS = torch.arange(24).view(2, 12) * 7 % 300
# Standard deviations of logits at which they may differ from those of fp32.
LIMITS = {"fp32": 0.0, "bf16": 0.02, "fp16": 0.003, "int8": 0.05}


def make(tied: bool) -> Transformer:
    torch.manual_seed(0)
    return Transformer(replace(CONFIG, tie_word_embeddings=tied)).eval()


def predict(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kept", KEPT)
def test_rounded_weights_change_little_and_alike_in_any_form(
    kept: Kept, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = predict(make(tied))
    model = make(tied)
    round_weights(model, kept)
    found = predict(model)
    off = (found - exact).abs().max() / exact.std()
    assert off <= LIMITS[kept] * 5
    assert (off > 0) == (kept != "fp32")
    assert found.dtype == torch.float32
    monkeypatch.setattr(narrow, "find_rows", lambda: None)
    widened = make(tied)
    round_weights(widened, kept)
    assert {weight.dtype for weight in widened.parameters()} == {torch.float32}
    torch.testing.assert_close(predict(widened), found, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(find_rows() is None, reason="needs a C compiler")
@pytest.mark.parametrize("kept", KEPT)
def test_a_large_model_is_written_with_by_the_products_that_are_faster(kept: Kept) -> None:
    torch.manual_seed(0)
    config = ModelConfig(4096, 512, 2, 8, 1536, 64)
    model = Transformer(config).eval()
    expected = predict(model)
    round_weights(model, kept)
    num_bytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    wide = config.num_parameters() * 4
    assert num_bytes < wide * {"fp32": 1.01, "bf16": 0.51, "fp16": 0.51, "int8": 0.27}[kept]
    max_rows = choose_products(model)
    assert {layer.max_rows for layer in model.modules() if hasattr(layer, "max_rows")} == {max_rows}
    cache_free = predict(model)
    assert (cache_free - expected).abs().max() / expected.std() <= LIMITS[kept] * 5 + 1e-4
