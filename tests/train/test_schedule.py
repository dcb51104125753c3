"""Schedules of the learning rate: their shapes, and what of a run can be made longer."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.runs import read_metrics, run_small
from tests.train.test_train import assert_equal_bits, checkpoint_tensors, list_names
from train.settings import config_from_dict
from train.step.schedule import (
    describe_change,
    describe_schedule,
    learning_rate,
    refuse_extension,
)
from train.training_config import Schedule, TrainingConfig

# Falls over the last four of eight steps.
WSD: dict[str, object] = {"training__schedule": "wsd", "training__decay_fraction": 0.5}


def list_rates(schedule: Schedule, **changes: Any) -> list[float]:
    settings: dict[str, Any] = {"warmup_steps": 10, "num_training_steps": 100} | changes
    config = TrainingConfig(schedule=schedule, learning_rate=1.0, **settings)
    return [learning_rate(step, config) for step in range(config.num_training_steps)]


def test_each_schedule_has_its_shape() -> None:
    """By their own formulas, with what is left of the fall at step s: 1 - (s - start) / length."""
    warmup = [(step + 1) / 10 for step in range(10)]
    line = [(100 - step) / 90 for step in range(10, 100)]
    assert list_rates("linear_to_zero") == pytest.approx(warmup + line)
    cosine = [0.1 + 0.9 * math.cos(math.pi * (step - 10) / 180) ** 2 for step in range(10, 100)]
    assert list_rates("cosine") == pytest.approx(warmup + cosine)
    decay = [0.5 + 0.5 * (100 - step) / 30 for step in range(70, 100)]
    found = list_rates("wsd", decay_fraction=0.3, final_fraction=0.5)
    assert found == pytest.approx(warmup + 60 * [1.0] + decay)
    assert list_rates("constant") == warmup + 90 * [1.0]
    assert list_rates("wsd", decay_fraction=0.0) == list_rates("constant")
    assert list_rates("wsd", decay_fraction=1.0) == list_rates("linear_to_zero")
    one_cycle = {"cycle_steps": 90, "min_learning_rate": 0.25}
    assert list_rates("cosine_restarts", **one_cycle) == list_rates("cosine", final_fraction=0.25)


@pytest.mark.parametrize("schedule", ["cosine", "linear_to_zero", "wsd", "constant"])
def test_a_schedule_shorter_than_its_warmup_only_warms_up(schedule: Schedule) -> None:
    rates = list_rates(schedule, warmup_steps=200)
    assert rates == [(step + 1) / 200 for step in range(100)]
    assert list_rates(schedule, warmup_steps=0)[0] == 1.0


def test_settings_of_before_have_the_originals_schedule() -> None:
    old = config_from_dict({"training": {"learning_rate": 1e-3}}, "run_config.json").training
    assert old.schedule == "cosine_restarts"
    assert learning_rate(16_000, old) == 1e-3  # Where the second cycle begins.
    told = describe_schedule(old)
    assert told.endswith("the first of 14,000 steps, each next one 2 times as long")


def test_behind_its_end_a_schedule_stays_where_it_was() -> None:
    """As it is asked for where a run is made longer, to tell what the learning rate had been."""
    for schedule, lowest in (("cosine", 0.1), ("linear_to_zero", 0.0), ("wsd", 0.0)):
        before = TrainingConfig(schedule=schedule, learning_rate=1.0, num_training_steps=3000)
        assert learning_rate(5000, before) == pytest.approx(lowest)
        told = describe_change(before, replace(before, num_training_steps=9000), 3000)
        assert told is not None
        assert f"(had {lowest:.2e})" in told


def test_wsd_is_made_longer_from_before_its_decay(tiny_shards: Path, tmp_path: Path) -> None:
    """The checkpoint at which the decay begins is there, though two newer ones are kept."""
    settings = WSD | {"training__save_steps": 3, "training__save_total_limit": 2}
    run_small(tiny_shards, tmp_path / "short", **settings)
    assert list_names(tmp_path / "short") == ["checkpoint-4", "checkpoint-6", "checkpoint-8"]
    longer = WSD | {"training__num_training_steps": 12}
    start = tmp_path / "short" / "checkpoints" / "checkpoint-4"
    named = {"infrastructure__resume_from_checkpoint": start}
    run_small(tiny_shards, tmp_path / "longer", **longer, **named)
    run_small(tiny_shards, tmp_path / "straight", **longer)
    assert_equal_bits(*(checkpoint_tensors(tmp_path / n, 12) for n in ("longer", "straight")))
    rates = read_metrics(tmp_path / "straight", "learning_rate")
    assert [rates[step] for step in (6, 7, 12)] == pytest.approx([1e-2, 1e-2, 1e-2 / 6])


def test_a_constant_run_is_made_longer_and_then_ended(tiny_shards: Path, tmp_path: Path) -> None:
    constant: dict[str, object] = {"training__schedule": "constant"}
    run_small(tiny_shards, tmp_path / "short", **constant, training__num_training_steps=4)
    for name in ("short", "straight"):
        run_small(tiny_shards, tmp_path / name, **constant)
    assert_equal_bits(*(checkpoint_tensors(tmp_path / n, 8) for n in ("short", "straight")))
    run_small(tiny_shards, tmp_path / "short", **WSD, training__num_training_steps=12)
    rates = read_metrics(tmp_path / "short", "learning_rate")
    assert [rates[step] for step in (8, 9, 12)] == pytest.approx([1e-2, 4e-2 / 6, 1e-2 / 6])


def test_what_has_begun_to_fall_is_not_made_longer(tiny_shards: Path, tmp_path: Path) -> None:
    run_small(tiny_shards, tmp_path, **WSD)
    with pytest.raises(ValueError, match="to make the run longer, name a checkpoint") as caught:
        run_small(tiny_shards, tmp_path, **WSD, training__num_training_steps=12)
    told = str(caught.value)
    assert "checkpoint-8: its learning rate has fallen since step 4, to end at" in told
    assert "\n" not in told
    # The same command does nothing more.
    assert run_small(tiny_shards, tmp_path, **WSD).step == 8


@pytest.mark.parametrize(
    ("schedule", "start"), [("wsd", 80), ("linear_to_zero", 10), ("cosine", 10), ("constant", 100)]
)
def test_a_run_is_made_longer_up_to_where_its_fall_begins(schedule: Schedule, start: int) -> None:
    before = TrainingConfig(schedule=schedule, warmup_steps=10, num_training_steps=100)
    now = replace(before, num_training_steps=101)
    refuse_extension(before, now, start, "c")
    refuse_extension(before, before, 90, "c")
    refuse_extension(before, replace(before, num_training_steps=99), 90, "c")
    if schedule == "constant":
        return
    with pytest.raises(ValueError, match=f"c: its learning rate has fallen since step {start}, "):
        refuse_extension(before, now, start + 1, "c")
