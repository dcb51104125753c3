"""Smaller choices of a recipe: decay of embeddings, weights by depth, the z-loss in a run."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import ModelConfig
from model.transformer import Transformer
from tests.runs import make_overrides, read_metrics, run_small
from tests.servers.forked import run_ranks
from tests.tiny import CONFIG
from train.ranks.distributed import Rank
from train.step.optimizer import make_optimizer
from train.training_config import OptimizerName, TrainingConfig

ALONE = Rank(0, 1, 0, torch.device("cpu"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_embeddings_decay_or_not(is_tied: bool, optimizer: OptimizerName) -> None:
    """Where gradients are zeros, weights only decay: by 1 - 1e-2 * 0.1 at a step."""
    for decays in (True, False):
        torch.manual_seed(0)
        model = Transformer(replace(CONFIG, tie_word_embeddings=is_tied))
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        config = TrainingConfig(
            optimizer=optimizer, learning_rate=1e-2, weight_decay=0.1, decay_embeddings=decays
        )
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        make_optimizer(model, config, ALONE).step()
        for name, weight in model.named_parameters():
            stays = weight.dim() == 1 or (name == "model.embed_tokens.weight" and not decays)
            expected = before[name] * (1 if stays else 1 - 1e-3)
            torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=0)
            assert torch.equal(weight, before[name]) == stays, name


def test_what_adds_to_the_stream_starts_smaller_in_deeper_models() -> None:
    """On the meta device, as under fsdp, too; all other weights are as without it."""
    torch.manual_seed(3)
    plain = dict(Transformer(CONFIG).named_parameters())
    config = replace(CONFIG, init="depth_scaled")
    torch.manual_seed(3)
    scaled = dict(Transformer(config).named_parameters())
    with torch.device("meta"):
        empty = Transformer(config)
    torch.manual_seed(3)
    drawn = dict(empty.draw_weights(torch.device("cpu")))
    changed = set()
    for name, weight in scaled.items():
        assert torch.equal(weight, drawn[name])
        if not torch.equal(weight, plain[name]):
            changed.add(name.rpartition("layers.")[2][2:])
            torch.testing.assert_close(weight, plain[name] / math.sqrt(2 * 3))
    assert changed == {"self_attn.o_proj.weight", "mlp.down_proj.weight"}
    with pytest.raises(
        ValueError, match=r"model\.init is 'zero'; expected one of normal, depth_sc"
    ):
        ModelConfig(init="zero")  # type: ignore[arg-type]


def test_the_z_loss_is_logged_apart_and_learned_from(tiny_shards: Path, tmp_path: Path) -> None:
    """The first step's loss is the same number with it and without, on one rank and on two."""
    settings: dict[str, Any] = {"training__num_training_steps": 3}
    alone = settings | {"training__gradient_accumulation_steps": 4}
    z_loss = {"training__z_loss": 0.1}
    run_small(tiny_shards, tmp_path / "plain", **alone)
    run_small(tiny_shards, tmp_path / "one", **alone, **z_loss)
    run_ranks(2, make_overrides(tiny_shards, tmp_path / "two", **settings, **z_loss))
    losses = {name: read_metrics(tmp_path / name) for name in ("plain", "one", "two")}
    z_losses = {name: read_metrics(tmp_path / name, "z_loss") for name in losses}
    assert z_losses["plain"] == {}
    assert losses["one"][1] == pytest.approx(losses["plain"][1], rel=1e-7)
    assert losses["one"][3] != losses["plain"][3]
    # Of 300 ids that are about equally likely.
    assert z_losses["one"][1] == pytest.approx(0.1 * math.log(300) ** 2, rel=0.01)
    assert z_losses["one"][3] < z_losses["one"][1]
    for found in (losses, z_losses):
        assert found["one"] == pytest.approx(found["two"], abs=1e-5)


def test_a_z_loss_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training\.z_loss is -1\.0; expected at least 0"):
        TrainingConfig(z_loss=-1.0)
