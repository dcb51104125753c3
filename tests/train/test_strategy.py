"""ddp and fsdp: one arithmetic, one kind of checkpoint, and a part of the memory."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

import train.take_step
from model.recompute import ActivationCheckpointing
from model.transformer import Transformer
from tests.runs import make_config, make_overrides, read_metrics, run_small
from tests.servers.forked import call_ranks, run_ranks
from tests.tiny import CONFIG
from tests.train.test_train import assert_equal_bits, checkpoint_tensors
from train.config import Config, DistributedConfig
from train.ranks.distributed import Rank
from train.ranks.exchange import full_tensor
from train.ranks.strategy import share_gradients, share_model
from train.run import Run, build_model
from train.start.memory import estimate_memory
from train.step.loss_scale import make_scaler
from train.step.optimizer import apply_gradients, clip_gradients, make_optimizer
from train.training_config import TrainingConfig

WIDE = replace(
    CONFIG, vocab_size=1000, hidden_size=256, num_hidden_layers=8, intermediate_size=1024
)
FILES = ("model.safetensors", "optimizer.safetensors")
FSDP = {"distributed__strategy": "fsdp"}


def read_header(path: Path) -> bytes:
    """The beginning of a safetensors file: names, types, shapes, and where each tensor lies."""
    content = path.read_bytes()
    return content[: 8 + int.from_bytes(content[:8], "little")]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_fsdp_gives_the_losses_of_ddp(tiny_shards: Path, tmp_path: Path, precision: str) -> None:
    """With 5 windows to validate on, the second rank has none left in the last round."""
    settings = {"training__precision": precision, "training__eval_windows": 5}
    run_ranks(2, make_overrides(tiny_shards, tmp_path / "ddp", **settings))
    said, _ = run_ranks(2, make_overrides(tiny_shards, tmp_path / "fsdp", **settings, **FSDP))
    assert "parameters, 1/2 of each weight a rank (fsdp)" in said
    tolerance = 1e-5 if precision == "fp32" else 1e-3
    for metric in ("loss", "grad_norm", "validation_loss"):
        first, second = (read_metrics(tmp_path / name, metric) for name in ("ddp", "fsdp"))
        assert first == pytest.approx(second, abs=tolerance if metric != "grad_norm" else 1e-3)
    ddp, fsdp = (tmp_path / name / "checkpoints" / "checkpoint-8" for name in ("ddp", "fsdp"))
    assert {path.name for path in ddp.iterdir()} == {path.name for path in fsdp.iterdir()}
    for name in FILES:
        assert read_header(ddp / name) == read_header(fsdp / name)
    before, after = (checkpoint_tensors(tmp_path / name, 8) for name in ("ddp", "fsdp"))
    assert torch.equal(before.pop("generator"), after.pop("generator"))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=10 * tolerance, rtol=0)


def test_a_run_goes_on_with_other_ranks_and_the_other_strategy(
    tiny_shards: Path, tmp_path: Path
) -> None:
    """ddp on 2 -> fsdp on 2 -> 1 -> 2 -> ddp on 2, with the losses of one that never stopped."""
    schedule = {"training__cycle_steps": 6}
    run_ranks(2, make_overrides(tiny_shards, tmp_path / "straight", **schedule))
    alone = FSDP | {"training__gradient_accumulation_steps": 4}
    starts: list[tuple[int, int, dict[str, Any]]]
    starts = [(2, 2, {}), (3, 2, FSDP), (5, 1, alone), (7, 2, FSDP), (8, 2, {})]
    for steps, ranks, changes in starts:
        settings = schedule | changes | {"training__num_training_steps": steps}
        if ranks == 1:
            run_small(tiny_shards, tmp_path / "changed", **settings)
        else:
            run_ranks(ranks, make_overrides(tiny_shards, tmp_path / "changed", **settings))
    for metric in ("loss", "grad_norm", "samples"):
        first, second = (read_metrics(tmp_path / name, metric) for name in ("straight", "changed"))
        assert first == pytest.approx(second, abs=1e-5 if metric == "loss" else 1e-3)


def test_going_on_under_fsdp_equals_never_having_stopped(tiny_shards: Path, tmp_path: Path) -> None:
    """On three ranks, which cut no weight of this model evenly."""
    settings = FSDP | {"training__precision": "fp16", "training__cycle_steps": 6}
    run_ranks(3, make_overrides(tiny_shards, tmp_path / "straight", **settings))
    for steps in (3, 8):
        settings["training__num_training_steps"] = str(steps)
        run_ranks(3, make_overrides(tiny_shards, tmp_path / "resumed", **settings))
    assert_equal_bits(*(checkpoint_tensors(tmp_path / n, 8) for n in ("straight", "resumed")))


def spoil_step() -> None:
    """The loss of the seventh step's samples becomes three times as large."""
    add_gradients = train.take_step.add_gradients

    def add(run: Run) -> Tensor:
        total = add_gradients(run)
        return total * (3 if run.batches.consumed == 56 else 1)

    train.take_step.add_gradients = add


def test_a_run_under_fsdp_goes_back_as_under_ddp(tiny_shards: Path, tmp_path: Path) -> None:
    """Between the bad step and the rollback the model computes without a backward pass."""
    changes = {"training__on_bad_step": "rollback", "training__spike_window": 2}
    changes |= {"training__save_steps": 2, "distributed__gradient_compression": "fp16"}
    for name in ("ddp", "fsdp"):
        words = make_overrides(tiny_shards, tmp_path / name, **changes, distributed__strategy=name)
        said, _ = run_ranks(2, words, spoil_step)
        assert "back to step 4, and past all samples since" in said
    for metric in ("loss", "samples"):
        first, second = (read_metrics(tmp_path / name, metric) for name in ("ddp", "fsdp"))
        # Added up as fp16, in another order.
        assert first == pytest.approx(second, abs=1e-3)
    assert read_metrics(tmp_path / "ddp") != read_metrics(tmp_path / "fsdp")


def test_texts_on_the_way_are_those_of_ddp(tiny_shards: Path, tmp_path: Path) -> None:
    """The run then goes on, also where it was killed before it wrote the texts of its last step."""
    changes = {"training__sample_steps": 4, "training__cycle_steps": 6}
    for name in ("ddp", "fsdp"):
        for steps in (4, 8):
            changes |= {"distributed__strategy": name, "training__num_training_steps": steps}
            run_ranks(2, make_overrides(tiny_shards, tmp_path / name, **changes))
            if steps == 4:
                (tmp_path / name / "logs" / "samples.jsonl").unlink()
    ddp, fsdp = (tmp_path / name / "logs" / "samples.jsonl" for name in ("ddp", "fsdp"))
    assert ddp.read_text() == fsdp.read_text()
    assert {json.loads(line)["step"] for line in ddp.read_text().splitlines()} == {4, 8}


def test_weights_drawn_one_by_one_are_those_of_a_new_model() -> None:
    torch.manual_seed(7)
    model = Transformer(CONFIG)
    after = torch.get_rng_state()
    with torch.device("meta"):
        empty = Transformer(CONFIG)
    torch.manual_seed(7)
    drawn = dict(empty.draw_weights(torch.device("cpu")))
    assert torch.equal(torch.get_rng_state(), after)
    assert list(drawn) == [name for name, _ in model.named_parameters()]
    for name, weight in model.named_parameters():
        assert torch.equal(drawn[name], weight), name


def make_settings(**training: Any) -> Config:
    """The settings of a small model under fsdp."""
    return Config(
        CONFIG,
        replace(TrainingConfig(precision="fp16"), **training),
        distributed=DistributedConfig(strategy="fsdp"),
        data=replace(Config().data, max_seq_length=32),
    )


def build(config: Config, rank: Rank) -> tuple[Transformer, torch.optim.Optimizer]:
    model = build_model(config, rank)
    return model, make_optimizer(model, config.training, rank)


def learn(model: torch.nn.Module, rank: Rank, scale: float = 1.0, is_last: bool = True) -> Tensor:
    """A micro-step, with other tokens on each rank; returns its loss."""
    generator = torch.Generator().manual_seed(rank.rank)
    tokens = torch.randint(CONFIG.num_ids, (2, 33), generator=generator)
    with share_gradients(model, is_last), torch.autocast("cpu", torch.float16):
        loss: Tensor = model(tokens[:, :-1], tokens[:, 1:], scale)
        (loss * scale).backward()
    return loss.detach()


def apply(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> float:
    """An update with the gradients; returns their norm."""
    norm = float(clip_gradients(optimizer, scaler, 1.0))
    is_finite = math.isfinite(norm)
    apply_gradients(optimizer, scaler, 1e-3, not is_finite, is_finite, 1.0)
    return norm


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def check_memory(rank: Rank) -> None:
    """Weights, gradients and means are this rank's rows; nothing whole stays anywhere."""
    model, optimizer = build(make_settings(), rank)
    learn(model, rank)
    learn(model, rank)
    apply(optimizer, make_scaler(rank.device, TrainingConfig(precision="fp32")))
    rows = {name: -(-len(weight) // rank.world_size) for name, weight in model.named_parameters()}
    numbers = sum(rows[name] * weight[0].numel() for name, weight in model.named_parameters())
    held = {}  # A block's gradients are views into one.
    for weight in model.parameters():
        assert isinstance(weight, DTensor)
        state = optimizer.state[weight]
        for tensor in (weight, weight.grad, state["exp_avg"], state["exp_avg_sq"]):
            assert tensor is not None
            storage = local(tensor.detach()).untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    assert sum(held.values()) == pytest.approx(16 * numbers, rel=0.02)
    assert numbers < 0.51 * CONFIG.num_parameters()


def test_each_rank_holds_its_part_of_the_state() -> None:
    call_ranks(2, check_memory)


def test_what_is_too_large_for_a_rank_fits_in_parts() -> None:
    """27 GB of state on cards of 24 GB: refused whole, and on four of them with 8,192 tokens."""
    training = TrainingConfig(activation_checkpointing="full", batch_size_per_device=4)
    config = Config(training=training)
    assert estimate_memory(config, "cuda", 4).state > 24e9
    sharded = replace(config, distributed=DistributedConfig(strategy="fsdp"))
    assert estimate_memory(sharded, "cuda", 4).state == config.model.num_parameters() * 16 // 4
    assert estimate_memory(sharded, "cuda", 4).peak < 24e9
    assert estimate_memory(sharded, "cuda", 1) == estimate_memory(config, "cuda", 1)


def check_overflow(rank: Rank) -> None:
    """A gradient that is infinite in the rows of the second rank: both skip, both halve."""
    config = make_settings()
    model, optimizer = build(config, rank)
    scaler = make_scaler(rank.device, config.training)
    learn(model, rank, float(scaler.scale(torch.ones(()))))
    before = [local(weight.detach()).clone() for weight in model.parameters()]
    if rank.rank == 1:
        gradient = next(model.parameters()).grad
        assert gradient is not None
        local(gradient)[0, 0] = torch.inf
    assert not math.isfinite(apply(optimizer, scaler))
    assert scaler.get_scale() == 2.0**15
    for weight, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(local(weight.detach()), old)
        assert weight.grad is not None
        assert not local(weight.grad).any()
    learn(model, rank, scaler.get_scale())
    norm = apply(optimizer, scaler)
    assert math.isfinite(norm)
    assert scaler.get_scale() == 2.0**15
    assert rank.max(round(norm * 1e6)) == -rank.max(-round(norm * 1e6))


def test_an_overflow_in_one_rank_s_part_skips_the_step_on_all() -> None:
    call_ranks(2, check_overflow)


def check_gradients(rank: Rank, checkpointing: ActivationCheckpointing, is_compiled: bool) -> None:
    """The same gradients as under DDP, from the same weights, over two micro-steps."""
    config = make_settings(activation_checkpointing=checkpointing, compile=False)
    model, _ = build(config, rank)
    plain = replace(config, distributed=DistributedConfig())
    whole = build_model(plain, rank)
    if is_compiled:
        torch._dynamo.config.optimize_ddp = False
        for one in (model, whole):
            one.compile_blocks(backend="aot_eager")  # All but the code generation.
    shared = share_model(whole, rank, plain.distributed)
    for is_last in (False, True):
        losses = learn(model, rank, is_last=is_last), learn(shared, rank, is_last=is_last)
        torch.testing.assert_close(*losses)
    for (name, weight), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(full_tensor(weight.detach()), other.detach()), name
        assert weight.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(full_tensor(weight.grad), other.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("checkpointing", "is_compiled"),
    [("none", False), ("selective", False), ("full", False), ("selective", True)],
)
def test_gradients_are_those_of_ddp(
    checkpointing: ActivationCheckpointing, is_compiled: bool
) -> None:
    call_ranks(2, check_gradients, checkpointing, is_compiled)


def test_on_one_rank_fsdp_is_the_plain_model(tiny_shards: Path, tmp_path: Path) -> None:
    config = make_config(tiny_shards, tmp_path, **FSDP)
    rank = Rank(0, 1, 0, torch.device("cpu"))
    model = build_model(config, rank)
    assert type(model) is Transformer
    assert share_model(model, rank, config.distributed) is model


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_fsdp_gives_the_losses_of_ddp_on_gpus(
    tiny_shards: Path, tmp_path: Path, precision: str
) -> None:
    """Blocks compiled, as they are there by default."""
    settings = {"training__precision": precision}
    run_ranks(2, make_overrides(tiny_shards, tmp_path / "ddp", **settings))
    run_ranks(2, make_overrides(tiny_shards, tmp_path / "fsdp", **settings, **FSDP))
    first, second = (read_metrics(tmp_path / name) for name in ("ddp", "fsdp"))
    assert first == pytest.approx(second, abs=1e-4 if precision == "fp32" else 1e-2)
