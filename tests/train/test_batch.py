"""A step's samples: the same on any number of ranks, cut into micro-steps, or refused in a line."""

import re
from pathlib import Path

import numpy as np
import pytest

from shards.reader import open_shards
from tests.runs import make_config, make_overrides, read_metrics, run_small
from tests.servers.forked import run_ranks
from train.batches import Dealing
from train.checkpoints.position import read_position, read_run_config
from train.config import Config
from train.settings import load_config
from train.start.batch import settle_batch
from train.tracing.runs import trace_settings

# 7 samples of 16 tokens: no other number of ranks than 1 and 7 deals them evenly.
UNEVEN: dict[str, object] = {
    "training__global_batch_tokens": 7 * 16,
    "training__gradient_accumulation_steps": "auto",
}


def settle(num_ranks: int, *overrides: str) -> Config:
    return settle_batch(load_config(None, overrides), num_ranks)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("micro_steps", [1, 2, 3, 5])
def test_uneven_steps_are_dealt_whole(world_size: int, micro_steps: int) -> None:
    dealings = [Dealing(16, micro_steps, rank, world_size) for rank in range(world_size)]
    total, dealt = 0.0, list[int]()
    for dealing in dealings:
        runs = dealing.own_samples(160)
        assert len(runs) == len(dealing.weights) == micro_steps
        for samples, weight in zip(runs, dealing.weights, strict=True):
            # The gradient is averaged over micro-steps and ranks: each sample has 1/16 of it.
            share = weight / (micro_steps * world_size)
            assert share == pytest.approx(len(samples) / 16 if weight else 0)
            total += share
            if weight:
                dealt += samples.tolist()
    assert sorted(dealt) == list(range(160, 176))
    assert total == pytest.approx(1)


def test_equal_shares_weigh_exactly_one() -> None:
    """Then nothing is rounded that was not rounded before."""
    for micro_steps in range(1, 50):
        for world_size in (1, 2, 3, 7, 64):
            dealing = Dealing(5 * micro_steps * world_size, micro_steps, 0, world_size)
            assert dealing.weights == [1.0] * micro_steps


def test_micro_steps_follow_from_the_tokens_of_a_step() -> None:
    for tokens, num_ranks, batch, micro_batch, micro_steps in (
        (65536, 1, 4, 4, 8),
        (65536, 2, 4, 4, 4),
        (65536, 3, 4, 4, 3),  # 32 samples in 9 runs of 3 or 4.
        (65536, 32, 4, 1, 1),
        (262144, 64, 4, 2, 1),
        (2048, 1, 4, 1, 1),
    ):
        words = f"training.global_batch_tokens={tokens}", f"training.batch_size_per_device={batch}"
        config = settle(num_ranks, *words)
        training = config.training
        found = training.batch_size_per_device, training.gradient_accumulation_steps
        assert found == (micro_batch, micro_steps)
        assert config.samples_per_step(num_ranks) == tokens // 2048
        # What a checkpoint keeps means the same again.
        assert settle_batch(config, num_ranks) == config
    bare = settle(5)
    assert (bare.training.micro_batch, bare.training.gradient_accumulation_steps) == (4, 8)
    assert bare.samples_per_step(5) == 160


@pytest.mark.parametrize(
    ("words", "num_ranks", "message"),
    [
        (
            ["training.global_batch_tokens=3000"],
            1,
            "training.global_batch_tokens is 3,000; expected a multiple of data.max_seq_length="
            "2,048, at most 1,073,741,824, such as 2,048",
        ),
        (["training.global_batch_tokens=0"], 1, "such as 2,048"),
        (["training.global_batch_tokens=5000"], 1, "such as 4,096"),
        (["training.global_batch_tokens=1e12"], 1, "such as 1,073,741,824"),
        (["training.global_batch_tokens=many"], 1, "expected a whole number or null"),
        (
            ["training.global_batch_tokens=4096"],
            3,
            "training.global_batch_tokens=4,096 are 2 samples of data.max_seq_length=2,048, fewer "
            "than the 3 ranks; expected at least 6,144",
        ),
        (
            ["training.global_batch_tokens=65536", "training.gradient_accumulation_steps=8"],
            2,
            "training.global_batch_tokens=65,536 on 2 ranks takes 4 micro-steps of up to 4 samples,"
            " but training.gradient_accumulation_steps is 8; leave that at auto",
        ),
        (["training.gradient_accumulation_steps=some"], 1, "expected a whole number or auto"),
        (["training.gradient_accumulation_steps=0"], 1, "expected at least 1"),
    ],
)
def test_what_contradicts_itself_is_refused(words: list[str], num_ranks: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        settle(num_ranks, *words)
    assert "\n" not in str(caught.value)


def test_three_ranks_give_the_losses_of_one(small_shards: Path, tmp_path: Path) -> None:
    """Of 7 samples a step each of 3 ranks gets 2 or 3, in two micro-steps of 1 or 2."""
    run_small(small_shards, tmp_path / "one", **UNEVEN)
    run_ranks(3, make_overrides(small_shards, tmp_path / "three", **UNEVEN))
    for metric in ("loss", "grad_norm", "samples"):
        one, three = (read_metrics(tmp_path / name, metric) for name in ("one", "three"))
        assert one == pytest.approx(three, abs=1e-5)
    assert read_metrics(tmp_path / "one", "samples")[8] == 56

    checkpoint = tmp_path / "three" / "checkpoints" / "checkpoint-8"
    training = read_run_config(checkpoint).training
    assert (training.batch_size_per_device, training.gradient_accumulation_steps) == (2, 2)
    assert [stretch.samples_per_step for stretch in read_position(checkpoint).history] == [7]
    # One rank goes on where three stopped, with the samples that one alone would have seen.
    for name in ("one", "three"):
        run_small(small_shards, tmp_path / name, **UNEVEN, training__num_training_steps=12)
    for metric in ("loss", "samples"):
        one, three = (read_metrics(tmp_path / name, metric) for name in ("one", "three"))
        assert len(one) == 12
        assert one == pytest.approx(three, abs=1e-5)


def test_ranks_without_a_sample_in_a_micro_step_change_nothing(
    small_shards: Path, tmp_path: Path
) -> None:
    """7 samples, one at a time, on two ranks: the second has none in one of the 4 micro-steps."""
    single = UNEVEN | {"training__batch_size_per_device": 1}
    assert 0 in Dealing(7, 4, 0, 2).weights
    run_small(small_shards, tmp_path / "one", **single)
    run_ranks(2, make_overrides(small_shards, tmp_path / "two", **single))
    for metric in ("loss", "grad_norm"):
        one, two = (read_metrics(tmp_path / name, metric) for name in ("one", "two"))
        assert one == pytest.approx(two, abs=1e-5)


def test_the_trace_of_a_planned_run_takes_the_same_samples(
    small_shards: Path, tmp_path: Path
) -> None:
    config = make_config(small_shards, tmp_path, **UNEVEN)
    for num_ranks in (1, 3):
        tracer = trace_settings(open_shards(small_shards), config, num_ranks)
        samples = [sample for sample, _, _ in tracer.documents_of_step(2)]
        assert np.array_equal(samples, np.arange(7, 14))
