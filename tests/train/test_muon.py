"""Muon: right by references of its own, dealt out over ranks, saved, sharded and skipped."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train.step.muon
from model.transformer import Transformer
from tests.runs import make_config, make_overrides, read_metrics, run_small
from tests.servers.forked import call_ranks, run_ranks
from tests.tiny import CONFIG
from tests.train.test_strategy import apply, learn
from tests.train.test_train import assert_equal_bits, checkpoint_tensors, set_loss_scale
from train.config import Config, DistributedConfig
from train.ranks.distributed import Rank
from train.ranks.exchange import full_tensor
from train.ranks.strategy import share_model
from train.run import build_model
from train.start.memory import estimate_memory
from train.step.loss_scale import make_scaler
from train.step.muon import COEFFICIENTS, ROUNDS, Muon, bundle, deal, orthogonalize
from train.step.optimizer import apply_gradients, make_optimizer
from train.training_config import TrainingConfig

MUON: dict[str, object] = {"training__optimizer": "muon"}
ALONE = Rank(0, 1, 0, torch.device("cpu"))
SHAPES = [(64, 64), (96, 64), (64, 96), (7, 100), (100, 7), (1, 5)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalizing_is_the_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    """By a singular value decomposition in fp64, with no product of matrices in the polynomial."""
    matrix = draw(*shape)
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    a, b, c = COEFFICIENTS
    values = values / values.square().sum().sqrt()
    large = values > 0.01
    for _ in range(ROUNDS):
        values = a * values + b * values**3 + c * values**5
    assert 0.65 < values[large].min() <= values.max() < 1.2
    expected = left @ values.diag() @ right
    [found] = orthogonalize([matrix])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)


def test_zeros_and_huge_numbers_stay_finite() -> None:
    huge = draw(4, 6)
    zeros, scaled, plain = orthogonalize([torch.zeros(4, 6), huge * 1e15, huge])
    assert not zeros.any()
    torch.testing.assert_close(scaled, plain)


def test_a_matrix_does_not_depend_on_those_beside_it() -> None:
    """In whatever company a rank takes it: of its shape, of its transpose's, of others."""
    matrices = [draw(*shape, seed=n) for n, shape in enumerate(3 * SHAPES)]
    together = orthogonalize(matrices)
    for matrix, found in zip(matrices, together, strict=True):
        assert found.shape == matrix.shape
        assert found.is_contiguous()
        torch.testing.assert_close(found, orthogonalize([matrix])[0], atol=1e-6, rtol=1e-5)


def make_weights(shapes: list[tuple[int, int]]) -> list[nn.Parameter]:
    return [nn.Parameter(draw(*shape, seed=10 + n)) for n, shape in enumerate(shapes)]


def give_gradients(weights: list[nn.Parameter], step: int) -> None:
    for n, weight in enumerate(weights):
        weight.grad = draw(*weight.shape, seed=100 * step + n)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_steps_are_those_of_torch_at_its_scale_that_matches_adamw(dtype: torch.dtype) -> None:
    """In bfloat16, which torch's always multiplies in, bit for bit; near it in fp32."""
    config = TrainingConfig(optimizer="muon", learning_rate=1e-2)
    ours, theirs, norm = make_weights(SHAPES), make_weights(SHAPES), nn.Parameter(torch.ones(3))
    adamw = torch.optim.AdamW([{"params": [norm], "relative_rate": 1.0}])
    muon = Muon(list(ours), adamw, config, ALONE)
    muon.dtype = dtype
    reference = torch.optim.Muon(
        theirs, lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        muon.step()
        reference.step()
    for own, other in zip(ours, theirs, strict=True):
        if dtype == torch.bfloat16:
            assert torch.equal(own, other)
        else:
            torch.testing.assert_close(own, other, atol=1e-2, rtol=0)
            assert not torch.equal(own, other)


def test_an_update_is_as_large_as_adamws() -> None:
    """Their RMS by the learning rate is 0.2 for every shape, where all singular values are 1."""
    for shape in SHAPES[:3]:
        [weight] = make_weights([shape])
        before = weight.detach().clone()
        config = TrainingConfig(optimizer="muon", learning_rate=1e-3, weight_decay=0.0)
        norm = nn.Parameter(torch.ones(3))
        adamw = torch.optim.AdamW([{"params": [norm], "relative_rate": 1.0}])
        muon = Muon([weight], adamw, config, ALONE)
        give_gradients([weight], 0)
        muon.step()
        rms = float((weight.detach() - before).square().mean().sqrt())
        assert rms == pytest.approx(0.2e-3, rel=0.15)


def test_only_the_matrices_of_blocks_are_muons() -> None:
    model = Transformer(replace(CONFIG, tie_word_embeddings=False))
    config = TrainingConfig(optimizer="muon", learning_rate=1e-3, muon_learning_rate=4e-3)
    optimizer = make_optimizer(model, config, ALONE)
    matrices, decaying, others = (group["params"] for group in optimizer.param_groups)
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(matrices) == 7 * CONFIG.num_hidden_layers
    assert sum(p.numel() for p in matrices) == CONFIG.block_matrix_parameters
    assert [names[id(p)] for p in decaying] == ["model.embed_tokens.weight", "lm_head.weight"]
    assert all(p.dim() == 1 for p in others)
    scaler = make_scaler(ALONE.device, TrainingConfig(precision="fp32"))
    apply_gradients(optimizer, scaler, 5e-4, overflowed=True, is_applied=False, min_loss_scale=1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [2e-3, 5e-4, 5e-4]


def test_matrices_are_dealt_out_evenly() -> None:
    matrices = [p for p in Transformer(CONFIG).model.layers.parameters() if p.dim() == 2]
    turns = deal(matrices, 4)
    assert sorted(map(id, matrices)) == sorted(id(m) for turn in turns for m in turn)
    assert [len(turn) for turn in turns] == [4, 4, 4, 4, 4, 1]
    work = [sum(t[n].numel() * min(t[n].shape) for t in turns if n < len(t)) for n in range(4)]
    assert max(work) <= 1.25 * min(work)


def test_a_rank_has_few_numbers_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(8, 8), (8, 4), (4, 8), (4, 4), (4, 4)]
    turns = deal([draw(*shape) for shape in shapes], 2)
    assert [[m.numel() for m in turn] for turn in turns] == [[64, 32], [32, 16], [16]]
    for limit, sizes in ((1, [1, 1, 1]), (48, [1, 2]), (96, [2, 1]), (1000, [3])):
        monkeypatch.setattr(train.step.muon, "NUMBERS_AT_ONCE", limit)
        bundles = bundle(turns)
        assert [len(part) for part in bundles] == sizes
        assert [turn for part in bundles for turn in part] == turns


# Runs


def test_going_on_equals_never_having_stopped(tiny_shards: Path, tmp_path: Path) -> None:
    settings = MUON | {"training__precision": "fp16", "training__schedule": "constant"}
    run_small(tiny_shards, tmp_path / "straight", **settings)
    for steps in (5, 8):
        changes = settings | {"training__num_training_steps": steps}
        run_small(tiny_shards, tmp_path / "resumed", **changes)
    straight, resumed = (checkpoint_tensors(tmp_path / n, 8) for n in ("straight", "resumed"))
    assert_equal_bits(straight, resumed)
    losses = read_metrics(tmp_path / "straight")
    assert losses == read_metrics(tmp_path / "resumed")
    assert losses[8] < losses[1] - 0.3
    kept = {name.rpartition(".")[2] for name in straight if ".mlp.up_proj.weight." in name}
    assert kept == {"momentum_buffer"}
    size = sum(t.numel() * 4 for name, t in straight.items() if name != "generator")
    steps = sum(4 for name in straight if name.endswith(".step"))
    config = make_config(tiny_shards, tmp_path, **settings, model__vocab_size=300)
    assert config.checkpoint_bytes == size - steps


def test_an_overflow_changes_neither_weights_nor_momentum(
    tiny_shards: Path, tmp_path: Path
) -> None:
    settings = MUON | {"training__precision": "fp16", "training__schedule": "constant"}
    run_small(tiny_shards, tmp_path, **settings, training__num_training_steps=2)
    set_loss_scale(tmp_path / "checkpoints" / "checkpoint-2", 2.0**40)
    before = checkpoint_tensors(tmp_path, 2)
    run_small(tiny_shards, tmp_path, **settings, training__num_training_steps=3)
    assert_equal_bits(before, checkpoint_tensors(tmp_path, 3))
    assert read_metrics(tmp_path, "skipped_steps")[3] == 1


def test_a_run_does_not_go_on_with_the_other_optimizer(tiny_shards: Path, tmp_path: Path) -> None:
    run_small(tiny_shards, tmp_path, training__num_training_steps=1)
    message = "was trained with training.optimizer=adamw, now it is muon; keep it as it was"
    with pytest.raises(ValueError, match=message):
        run_small(tiny_shards, tmp_path, **MUON)


def test_ranks_and_strategies_give_the_losses_of_one(tiny_shards: Path, tmp_path: Path) -> None:
    """fsdp on three ranks, which cut no weight of this model evenly, goes on where ddp stopped."""
    settings = MUON | {
        "training__schedule": "constant",
        "training__global_batch_tokens": 6 * 16,
        "training__gradient_accumulation_steps": "auto",
    }
    run_small(tiny_shards, tmp_path / "one", **settings)
    first = settings | {"training__num_training_steps": 4}
    said, _ = run_ranks(2, make_overrides(tiny_shards, tmp_path / "several", **first))
    assert "Muon for the blocks' matrices (in float32, dealt out over 2 ranks), AdamW for" in said
    sharded = settings | {"distributed__strategy": "fsdp"}
    run_ranks(3, make_overrides(tiny_shards, tmp_path / "several", **sharded))
    for metric in ("loss", "grad_norm"):
        one, several = (read_metrics(tmp_path / n, metric) for n in ("one", "several"))
        assert one == pytest.approx(several, abs=1e-4 if metric == "loss" else 1e-3)


def make_settings(strategy: Any) -> Config:
    """The settings of a small model."""
    return Config(
        CONFIG,
        TrainingConfig(precision="fp32", optimizer="muon"),
        distributed=DistributedConfig(strategy=strategy),
        data=replace(Config().data, max_seq_length=32),
    )


def count_calls() -> Iterator[Tensor]:
    """Note each matrix that this process orthogonalizes."""
    seen: list[Tensor] = []
    original = train.step.muon.orthogonalize

    def noting(matrices: Sequence[Tensor]) -> list[Tensor]:
        seen.extend(matrices)
        return original(matrices)

    train.step.muon.orthogonalize = noting
    return iter(seen)


def check_shares(rank: Rank) -> None:
    """Each matrix is orthogonalized on one rank, and all ranks have the same weights bit for bit.

    Under ddp and fsdp alike, two steps from the same weights with the same gradients: all matrices
    together, and a few at once.
    """
    weights = []
    for strategy, limit in (("ddp", 2**24), ("fsdp", 2500)):
        train.step.muon.NUMBERS_AT_ONCE = limit
        config = make_settings(strategy)
        model = build_model(config, rank)
        shared = share_model(model, rank, config.distributed)
        optimizer = make_optimizer(model, config.training, rank)
        calls = count_calls()
        for _ in range(2):
            learn(shared, rank)
            assert math.isfinite(apply(optimizer, make_scaler(rank.device, config.training)))
        sizes = [len(list(calls)), 2 * 7 * CONFIG.num_hidden_layers]
        assert int(rank.sum(sizes[0])[0]) == sizes[1]
        assert sizes[0] in (sizes[1] // 2 - 1, sizes[1] // 2 + 1)  # 21 matrices on two ranks.
        weights.append([full_tensor(weight.detach()) for weight in model.parameters()])
    for ddp, fsdp in zip(*weights, strict=True):
        torch.testing.assert_close(ddp, fsdp, atol=1e-6, rtol=0)
        rows = rank.gather(ddp.flatten())
        assert rows[0] == rows[1]


def test_each_rank_does_its_share_and_has_all_updates() -> None:
    call_ranks(2, check_shares)


def test_the_state_is_smaller_by_a_mean_of_each_matrix() -> None:
    config = Config()
    muon = replace(config, training=TrainingConfig(optimizer="muon"))
    saved = 4 * config.model.block_matrix_parameters
    assert config.model.block_matrix_parameters == 24 * (4 * 2048**2 + 3 * 2048 * 8192)
    for one, other in (
        (config.checkpoint_bytes, muon.checkpoint_bytes),
        (estimate_memory(config, "cuda").state, estimate_memory(muon, "cuda").state),
    ):
        assert one - other == saved
