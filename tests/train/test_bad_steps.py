"""Bad steps: a loss that is not finite or a spike, on one rank or all, and FP16's loss scale."""

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.utils
from torch.utils._python_dispatch import TorchDispatchMode

import train.loop
import train.take_step
from model.config import ModelConfig
from model.transformer import Block, Transformer
from tests.runs import make_overrides, read_metrics, run_small
from tests.servers.forked import run_ranks
from tests.train.test_train import assert_equal_bits, checkpoint_tensors
from train.checkpoints.folder import remove_checkpoint
from train.config import DistributedConfig
from train.ranks.distributed import Rank
from train.ranks.strategy import check_compression
from train.run import Run
from train.settings import load_config
from train.step.bad_steps import BadSteps, Step
from train.step.loss_scale import fit_scaler, make_scaler, update_scale
from train.step.precision import make_autocast
from train.training_config import TrainingConfig

Tensor = torch.Tensor
# A window that the small runs fill, over which their falling losses are no spikes.
WATCHED = {"training__spike_window": 4, "training__save_steps": 1}


@contextmanager
def bent(bend: Callable[[Run, Tensor], Tensor]) -> Iterator[None]:
    """Runs in which `bend` changes the sum of each step's losses before anybody sees it."""
    add_gradients = train.take_step.add_gradients
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train.take_step, "add_gradients", lambda run: bend(run, add_gradients(run)))
        yield


def bend_step(step: int, factor: float, run: Run, total: Tensor) -> Tensor:
    """The losses of the step with this number become `factor` times as large."""
    return total * factor if run.step + 1 == step else total


def bent_at(step: int, factor: float = 3.0) -> Any:
    return bent(partial(bend_step, step, factor))


# What is bad


def test_a_loss_far_above_those_before_it_is_a_spike() -> None:
    config = TrainingConfig(spike_window=8, spike_threshold=3.0)
    bad_steps = BadSteps()
    for loss in (2.0, 2.2, 2.0):
        assert bad_steps.judge(100.0, config) is None  # Too few to compare with.
        bad_steps.add(1, loss, is_bad=False, is_applied=True, window=8)
    bad_steps.add(1, 2.2, is_bad=False, is_applied=True, window=8)
    deviation = 0.2 / math.sqrt(3)
    assert bad_steps.judge(2.1 + 2.99 * deviation, config) is None
    assert bad_steps.judge(2.1 + 3.01 * deviation, config)
    assert bad_steps.judge(0.0, config) is None
    for loss in (math.nan, math.inf, -math.inf):
        assert bad_steps.judge(loss, config) == f"the loss is {loss}"
    config = TrainingConfig(spike_window=8, spike_threshold=None)
    assert bad_steps.judge(1e9, config) is None
    assert bad_steps.judge(math.nan, config)


def test_only_losses_that_were_applied_are_compared_with() -> None:
    bad_steps = BadSteps()
    for loss, is_applied in ((1.0, True), (9.0, False), (2.0, True), (math.nan, True), (3.0, True)):
        bad_steps.add(1, loss, is_bad=loss > 4, is_applied=is_applied, window=2)
    assert bad_steps.losses == [2.0, 3.0]
    assert (bad_steps.total, bad_steps.in_a_row, bad_steps.bad) == (1, 0, 1)


def test_a_checkpoint_of_before_has_no_losses() -> None:
    bad_steps = BadSteps()
    bad_steps.load_state_dict({"total": 3, "in_a_row": 1})
    assert bad_steps == BadSteps(total=3, in_a_row=1)


# What becomes of it


def test_a_bad_step_is_told_and_taken_all_the_same(
    small_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_small(small_shards, tmp_path / "plain", **WATCHED)
    capsys.readouterr()
    with bent_at(6):
        run_small(small_shards, tmp_path / "bent", **WATCHED)
    [line] = [line for line in capsys.readouterr().err.splitlines() if "on average" in line]
    assert line.startswith("step 6: the loss is 3"), line
    assert line.endswith("the deviation, over 4 steps")
    assert read_metrics(tmp_path / "bent", "bad_steps")[8] == 1
    assert read_metrics(tmp_path / "bent", "skipped_steps")[8] == 0
    plain, bent_one = (checkpoint_tensors(tmp_path / name, 8) for name in ("plain", "bent"))
    assert_equal_bits(plain, bent_one)


@pytest.mark.parametrize(("factor", "threshold"), [(3.0, "6.0"), (math.nan, "null")])
def test_a_bad_step_is_skipped_and_a_killed_run_skips_it_again(
    small_shards: Path, tmp_path: Path, factor: float, threshold: str
) -> None:
    settings = WATCHED | {"training__on_bad_step": "skip", "training__spike_threshold": threshold}
    with bent_at(6, factor):
        run_small(small_shards, tmp_path, **settings, training__save_total_limit=9)
        before, bad, after = (checkpoint_tensors(tmp_path, step) for step in (5, 6, 7))
        assert_equal_bits(before, bad)
        assert not torch.equal(bad["model.norm.weight"], after["model.norm.weight"])
        assert read_metrics(tmp_path, "skipped_steps")[8] == 1
        assert read_metrics(tmp_path, "samples")[8] == 32
        straight = checkpoint_tensors(tmp_path, 8)
        losses = read_metrics(tmp_path)
        for step in (5, 6, 7, 8):  # A run killed after step 4 remembers the losses before it.
            remove_checkpoint(tmp_path / "checkpoints" / f"checkpoint-{step}")
        run_small(small_shards, tmp_path, **settings)
    assert_equal_bits(straight, checkpoint_tensors(tmp_path, 8))
    assert losses == read_metrics(tmp_path)


def test_many_bad_steps_in_a_row_end_the_run_with_a_report(
    small_shards: Path, tmp_path: Path
) -> None:
    settings = WATCHED | {"training__on_bad_step": "skip", "training__max_skipped_steps": 3}
    with (
        bent(lambda run, total: total * (3 if run.step > 3 else 1)),
        pytest.raises(ValueError, match=r"step 7: 3 steps in a row were not applied \(the loss "),
    ):
        run_small(small_shards, tmp_path, **settings)


# Ranks


def spoil_one_rank() -> None:
    """On rank 1 alone, the loss of step 4 is NaN, and so are the gradients of step 6."""
    build_run, add_gradients = train.loop.build_run, train.take_step.add_gradients

    def build(*arguments: Any) -> Run:
        run = build_run(*arguments)
        scale = run.scaler.scale
        run.scaler.scale = lambda loss: bend_step(6, math.nan, run, scale(loss))  # type: ignore
        return run

    def add(run: Run) -> Tensor:
        return bend_step(4, math.nan, run, add_gradients(run))

    if os.environ["RANK"] == "1":
        train.loop.build_run, train.take_step.add_gradients = build, add


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_nan_on_one_rank_is_the_same_decision_on_all(
    small_shards: Path, tmp_path: Path, strategy: str
) -> None:
    """The ranks would wait for each other for ever, or end with different weights, if it were not.

    The last loss is that of weights which both ranks updated six times.
    """
    settings = WATCHED | {"distributed__strategy": strategy, "training__on_bad_step": "skip"}
    words = make_overrides(small_shards, tmp_path, **settings)
    said, _ = run_ranks(2, [*words, "training.save_total_limit=9"], spoil_one_rank)
    assert "step 4: the loss is nan; it was not applied" in said
    for bad in (4, 6):
        assert_equal_bits(*(checkpoint_tensors(tmp_path, step) for step in (bad - 1, bad)))
    assert read_metrics(tmp_path, "skipped_steps")[8] == 2
    assert read_metrics(tmp_path, "bad_steps")[8] == 1
    run_small(small_shards, tmp_path / "one", training__gradient_accumulation_steps=4)
    assert read_metrics(tmp_path)[3] == pytest.approx(read_metrics(tmp_path / "one")[3], abs=1e-5)


def test_gradients_are_sent_in_half_the_bytes_where_asked(
    small_shards: Path, tmp_path: Path
) -> None:
    for kind in ("none", "fp16"):
        asked = {"distributed__gradient_compression": kind}
        said, _ = run_ranks(2, make_overrides(small_shards, tmp_path / kind, **asked))
        assert ("x 2 ranks); gradients sent as fp16\n" in said) == (kind == "fp16")
    plain, sent = (read_metrics(tmp_path / kind) for kind in ("none", "fp16"))
    assert plain[1] == sent[1]
    assert plain != sent
    assert plain == pytest.approx(sent, abs=1e-2)


class CountReads(TorchDispatchMode):
    """Counts the numbers that the host reads off the device one by one, waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_step_waits_for_the_device_once(
    small_shards: Path, tmp_path: Path, precision: str
) -> None:
    """For loss and norm, which are read as a list; never for the fp16 scale alone."""
    take_step, counts = train.loop.take_step, []

    def take(run: Run) -> Step:
        with CountReads() as reads:
            step = take_step(run)
        counts.append(reads.count)
        return step

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train.loop, "take_step", take)
        settings = {"training__precision": precision, "training__num_training_steps": 3}
        run_small(small_shards, tmp_path, **settings)
    assert counts == [0] * 3


def test_bf16_is_sent_by_nccl_alone() -> None:
    rank = Rank(0, 2, 0, torch.device("cpu"))
    config = DistributedConfig(gradient_compression="bf16")
    with pytest.raises(
        ValueError, match=r"compression is bf16, which needs .*; set .*=fp16 or none"
    ):
        check_compression(config, rank)
    check_compression(DistributedConfig(gradient_compression="fp16"), rank)


# FP16's loss scale


def test_sums_of_products_are_not_rounded_to_16_bits() -> None:
    matmul = torch.backends.cuda.matmul
    names = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    for precision in ("fp16", "bf16"):
        for name in names:
            setattr(matmul, name, True)
        make_autocast(torch.device("cpu"), precision)  # type: ignore[arg-type]
        assert [getattr(matmul, name) for name in names] == [False, False]


def test_the_loss_scale_stays_at_its_floor() -> None:
    """Where torch's own would go on halving."""
    scaler = make_scaler(torch.device("cpu"), TrainingConfig())
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter])
    scales = []
    for _ in range(18):
        scaler.scale(parameter.sum() * math.inf).backward()
        scaler.unscale_(optimizer)
        update_scale(scaler, overflowed=True, min_scale=24.0)
        scales.append(scaler.get_scale())
    assert scales[:11] == [2.0**power for power in range(15, 4, -1)]
    assert scales[11:] == [24.0] * 7


def test_a_restored_scaler_has_the_settings_of_today(small_shards: Path, tmp_path: Path) -> None:
    settings: dict[str, object] = {"training__precision": "fp16"}
    run_small(small_shards, tmp_path, **settings, training__num_training_steps=4)
    settings |= {"training__loss_scale_growth_interval": 2}
    run_small(small_shards, tmp_path, **settings)
    scales = read_metrics(tmp_path, "loss_scale")
    assert [scales[step] for step in range(4, 8)] == [2.0**16, 2.0**17, 2.0**17, 2.0**18]
    scaler = make_scaler(torch.device("cpu"), TrainingConfig())
    scaler.load_state_dict(scaler.state_dict() | {"scale": 0.25})
    fit_scaler(scaler, TrainingConfig(min_loss_scale=4.0))
    assert scaler.get_scale() == 4.0


# Settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("min_loss_scale=1e6", "training.min_loss_scale is 1000000.0; expected a number from 0 to"),
        ("loss_scale_growth_interval=0", "loss_scale_growth_interval is 0; expected at least 1"),
        ("spike_window=1", "training.spike_window is 1; expected 2 to 10,000"),
        ("spike_threshold=0", "training.spike_threshold is 0; expected a number above 0, or"),
        ("max_rollbacks=0", "training.max_rollbacks is 0; expected at least 1"),
        (
            "on_bad_step=rollback training.max_skipped_steps=1",
            "training.max_skipped_steps=1 ends a run at its first bad step, where training.on_bad",
        ),
        ("on_bad_step=stop", "training.on_bad_step is 'stop'; expected"),
        (
            "on_bad_step=rollback training.save_steps=30",
            "training.save_steps=30 x training.save_total_limit=5 the oldest is 120 steps old",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(None, [f"training.{word.removeprefix('training.')}" for word in words.split()])


# Activations


def test_the_largest_activation_is_logged_with_the_steps_that_are(
    small_shards: Path, tmp_path: Path
) -> None:
    settings = {"training__logging_steps": 2, "training__num_training_steps": 6}
    run_small(small_shards, tmp_path / "off", **settings)
    assert read_metrics(tmp_path / "off", "largest_activation") == {}
    seen: list[float] = []
    forward = Block.forward

    def see(block: Block, *arguments: Any) -> Tensor:
        x = forward(block, *arguments)
        seen.append(float(x.detach().abs().max()))
        return x

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Block, "forward", see)
        run_small(small_shards, tmp_path / "on", **settings, training__log_activations="true")
    logged = read_metrics(tmp_path / "on", "largest_activation")
    # Two blocks and two micro-steps a step; then the validation loss.
    steps = [max(seen[start : start + 4]) for start in range(0, 24, 4)]
    assert logged == pytest.approx({step: steps[step - 1] for step in (2, 4, 6)})
    assert_equal_bits(*(checkpoint_tensors(tmp_path / name, 6) for name in ("off", "on")))


@pytest.mark.filterwarnings("ignore")  # The compiler has its own.
@pytest.mark.parametrize("kind", ["full", "selective", "compiled"])
def test_activations_are_seen_whatever_runs_the_blocks(kind: str) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(300, 16, 2, 2, 32, 32)).train()
    tokens = torch.randint(300, (2, 8))
    with model.watch_activations() as plain:
        model(tokens, tokens).backward()
    if kind == "compiled":
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model.compile_blocks(backend="aot_eager")
    else:
        model.activation_checkpointing = kind  # type: ignore[assignment]
    model(tokens, tokens).backward()
    with model.watch_activations() as seen:
        model(tokens, tokens).backward()
    model(tokens, tokens).backward()
    assert [float(x) for x in seen] == pytest.approx([float(x) for x in plain], rel=1e-5)
    assert len(seen) == 2
    if kind == "compiled":
        # One for all blocks, and one for what the loss does between its products.
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_activations_near_the_end_of_fp16_are_told_once(
    small_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"training__log_activations": "true", "training__num_training_steps": 3}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train.loop, "HALF_OF_FP16", 1e-6)
        for precision, count in (("fp32", 0), ("fp16", 1)):
            run_small(small_shards, tmp_path / precision, **settings, training__precision=precision)
            assert capsys.readouterr().err.count("and fp16 ends at 65,504; beyond") == count
