"""Models of other shapes are trained as those of ours: with any strategy, and going on exactly."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from model.checkpoints.folder import load_model
from model.config import ModelConfig
from model.transformer import Transformer
from tests.live import count_kept_bytes
from tests.runs import make_config, make_overrides, read_metrics, run_small
from tests.servers.forked import run_ranks
from tests.train.test_train import assert_equal_bits, checkpoint_tensors
from train.settings import load_config
from train.start.batch import set_training
from train.start.memory import activation_bytes, estimate_memory

# Two heads on one of keys and values, wider than their share; a head of its own; RoPE of Llama 3.1.
SHAPE: dict[str, object] = {
    "model__num_key_value_heads": 1,
    "model__head_dim": 12,
    "model__tie_word_embeddings": "false",
    "model__rope_type": "llama3",
    "model__rope_factor": 2,
    "model__rope_original_max_position_embeddings": 8,
}


def test_two_ranks_with_a_part_each_train_as_one(small_shards: Path, tmp_path: Path) -> None:
    fsdp = SHAPE | {"distributed__strategy": "fsdp"}
    run_ranks(2, make_overrides(small_shards, tmp_path / "fsdp", **fsdp))
    alone = SHAPE | {"training__gradient_accumulation_steps": 4}
    run_small(small_shards, tmp_path / "alone", **alone)
    first, second = (read_metrics(tmp_path / name) for name in ("alone", "fsdp"))
    assert first == pytest.approx(second, abs=1e-5)
    assert first[8] < first[1]
    folder = tmp_path / "fsdp" / "checkpoints" / "checkpoint-8"
    model, llama = load_model(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), llama(tokens).logits, atol=1e-5, rtol=0)


def test_another_shape_goes_on_bit_for_bit(small_shards: Path, tmp_path: Path) -> None:
    schedule = SHAPE | {"training__cycle_steps": 6}
    run_small(small_shards, tmp_path / "straight", **schedule)
    for steps in (3, 8):
        changes = schedule | {"training__num_training_steps": steps}
        run_small(small_shards, tmp_path / "resumed", **changes)
    assert_equal_bits(*(checkpoint_tensors(tmp_path / n, 8) for n in ("straight", "resumed")))
    with pytest.raises(ValueError, match=r"num_key_value_heads=1, now it is None; keep"):
        run_small(small_shards, tmp_path / "resumed", **SHAPE | {"model__num_key_value_heads": 2})


def test_memory_counts_both_embedding_and_head(small_shards: Path, tmp_path: Path) -> None:
    def estimate(**changes: object) -> int:
        return estimate_memory(make_config(small_shards, tmp_path, **changes), "cuda").state

    untied = estimate(model__vocab_size=1000, model__tie_word_embeddings="false")
    assert untied - estimate(model__vocab_size=1000) == 16 * 1000 * 16


@pytest.mark.parametrize("is_half", [True, False])
def test_blocks_keep_what_is_expected_of_their_heads(is_half: bool) -> None:
    """Heads on fewer keys keep less, and wide ones more."""
    config = load_config(None, ["data.max_seq_length=256"])
    config = set_training(config, activation_checkpointing="none")
    plain = ModelConfig(300, 128, 2, 4, 96, 256)
    tokens = torch.zeros((2, 256), dtype=torch.int64)

    def compare(model: ModelConfig) -> tuple[int, int]:
        decoder = Transformer(model).train().model
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            kept = count_kept_bytes(lambda: decoder(tokens))
        # Autograd names weights in fp32 as kept, which are there anyway.
        weights = 0 if is_half else 4 * (model.num_parameters() - model.embedding_parameters)
        expected = activation_bytes(replace(config, model=model), 512, is_half, compiles=False)
        return kept - weights, expected

    before, expected_before = compare(plain)
    shapes = (replace(plain, num_key_value_heads=1), replace(plain, head_dim=64))
    for shape in shapes:
        kept, expected = compare(shape)
        assert kept - before == pytest.approx(expected - expected_before, rel=0.1)
        assert (kept < before) == (shape is shapes[0])
