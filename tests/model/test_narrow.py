"""Weights that are kept narrower: rounded once, the same with and without a compiler."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import narrow
from model.checkpoints.folder import save_model
from model.checkpoints.seal import seal
from model.compiled import find_library
from model.config import KEPT, Kept, ModelConfig
from model.generate import load_generator
from model.narrow import round_weights
from model.transformer import Transformer
from tests.tiny import CONFIG, TOKENIZER_JSON, make_model

TOKENS = torch.arange(24).view(2, 12) * 7 % 300
# How far off logits may be, in deviations of theirs: a model as small as this one averages little.
LIMITS = {"fp32": 0.0, "bf16": 0.5, "fp16": 0.05, "int8": 1.0}


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
    assert off <= LIMITS[kept]
    assert (off > 0) == (kept != "fp32")
    assert found.dtype == torch.float32
    monkeypatch.setattr(narrow, "find_library", lambda: None)
    widened = make(tied)
    round_weights(widened, kept)
    assert {weight.dtype for weight in widened.parameters()} == {torch.float32}
    torch.testing.assert_close(predict(widened), found, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(find_library() is None, reason="needs a C compiler")
@pytest.mark.parametrize("kept", KEPT)
def test_what_is_kept_takes_that_many_bytes(kept: Kept) -> None:
    model = Transformer(ModelConfig(4096, 256, 2, 8, 768, 64)).eval()
    wide = model.config.num_parameters() * 4
    round_weights(model, kept)
    num_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    share = {"fp32": 1, "bf16": 0.5, "fp16": 0.5, "int8": 0.25}[kept]
    assert share * wide <= num_bytes <= (share + 0.02) * wide


@pytest.mark.parametrize("has_compiler", [True, False])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_what_is_stored_narrow_is_kept_so_and_not_rounded(
    stored: torch.dtype, has_compiler: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model().to(stored)
    save_model(tmp_path / "checkpoint-1", model, TOKENIZER_JSON)
    seal(tmp_path / "checkpoint-1")
    if not has_compiler:
        monkeypatch.setattr(narrow, "find_library", lambda: None)
    loaded = load_generator(tmp_path, "cpu").model
    is_kept = has_compiler and find_library() is not None
    assert loaded.lm_head.weight.dtype == (stored if is_kept else torch.float32)
    assert loaded.model.norm.weight.dtype == torch.float32
    torch.testing.assert_close(predict(loaded), predict(make_model().to(stored).float()))
