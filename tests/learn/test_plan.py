"""The plan of benchmarks/learn: which trials come next, and what their losses come to."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.learn import __main__ as command
from benchmarks.learn.forms import ARMS, BASELINE, FORMS, SHIPPED_RATE, Form
from benchmarks.learn.plan import Trial, choose_ours, count_to_reach, list_next, list_seeds
from benchmarks.learn.summary import find_factor, find_interval, summarize
from benchmarks.learn.table import make_tables
from train.settings import load_config

SMALL = FORMS["small"]
# What each arm gains over the one before it, and the rate at which it is best.
GAINS = {"nanogpt": 0.0, "llama": 0.1, "linear": 0.2, "muon": 0.6, "init": 0.55}
BEST = {"nanogpt": 1.2e-3, "llama": 2.4e-3, "linear": 2.4e-3, "muon": 9.6e-3, "init": 4.8e-3}


def invent_loss(trial: Trial) -> float:
    """A world with a known best of each arm, in which half of the tokens cost 0.3 nats."""
    far = abs(math.log2(trial.rate / BEST[trial.arm]))
    share = trial.steps / SMALL.count_steps()
    return 6 - GAINS[trial.arm] + 0.05 * far**2 - 0.3 * math.log2(share) + 0.001 * trial.seed


def play(form: Form, loss: Any = invent_loss) -> dict[Trial, float]:
    """All trials of a form in the order of the plan."""
    losses: dict[Trial, float] = {}
    while trials := list_next(form, losses):
        assert not losses.keys() & {*trials}
        assert len({*trials}) == len(trials)
        losses |= {trial: loss(trial) for trial in trials}
    return losses


def describe(losses: dict[Trial, float]) -> dict[Trial, Any]:
    """Results as trials leave them."""
    return {
        trial: {
            "loss": loss if math.isfinite(loss) else None,
            "last_training_loss": 5.0,
            "skipped_steps": 0,
            "cpu_seconds": 40.0,
            "seconds": 100.0,
            "shape": ARMS[trial.arm].shape,
            "sets": {"train": "a", "held-out": "b"},
            "parameters": 1000,
            "block_parameters": 800,
        }
        for trial, loss in losses.items()
    }


def test_all_arms_are_tuned_by_the_same_trials_until_each_best_is_inside() -> None:
    losses = play(SMALL)
    steps = SMALL.count_steps()
    rates = {
        arm: sorted(
            trial.rate
            for trial in losses
            if (trial.arm, trial.seed, trial.steps) == (arm, 0, steps)
            and trial.rate != SHIPPED_RATE
        )
        for arm in ARMS
    }
    # 1.2e-3 is nanoGPT's best, so half of it is tried too: that is the rate as shipped.
    grid = [1.2e-3, 2.4e-3, 4.8e-3, 9.6e-3, 1.92e-2]
    assert all(found == pytest.approx(grid) for found in rates.values())
    for arm, best in BEST.items():
        seeds = list_seeds(SMALL, arm, losses)
        assert [trial.rate for trial in seeds] == pytest.approx([best] * 3)
        assert [trial.seed for trial in seeds] == [0, 1, 2]
        assert {*seeds} <= losses.keys()
    assert {Trial(BASELINE, SHIPPED_RATE, seed, steps) for seed in range(3)} <= losses.keys()


def test_the_best_of_ours_is_shortened_until_it_falls_short() -> None:
    losses = play(SMALL)
    steps = SMALL.count_steps()
    assert choose_ours(SMALL, losses) == "muon"
    shortened = sorted({trial.steps for trial in losses if trial.steps != steps})
    assert {trial.arm for trial in losses if trial.steps != steps} == {"muon"}
    # Half of the tokens cost 0.3, and ours is 0.6 ahead: a quarter of them would do.
    assert shortened == [round(steps * share) for share in (0.245, 0.35, 0.5, 0.7, 0.85)]
    factors = summarize(SMALL, describe(losses))["factors"]
    assert factors["tuned"]["mean"] == pytest.approx(4.0, rel=0.01)
    assert factors["tuned"]["by_seed"] == sorted(factors["tuned"]["by_seed"], reverse=True)
    assert not factors["tuned"]["is_at_least"]
    # As shipped is worse, and reached in the shortest run: no fewer were tried.
    assert factors["shipped"]["mean"] == pytest.approx(1 / 0.245, rel=0.01)
    assert factors["shipped"]["is_at_least"]


def test_a_trial_that_diverged_loses_and_is_told_as_such() -> None:
    def explode(trial: Trial) -> float:
        return math.inf if trial.rate > 3e-3 else invent_loss(trial)

    losses = play(SMALL, explode)
    assert list_seeds(SMALL, "muon", losses)[0].rate == pytest.approx(2.4e-3)
    text = json.dumps(summarize(SMALL, describe(losses)), allow_nan=False)
    assert '"loss": null' in text


def test_a_form_with_a_target_needs_no_baseline() -> None:
    gpu = FORMS["gpu"]
    assert gpu.count_steps() * gpu.tokens_per_step == gpu.tokens

    def near(trial: Trial) -> float:
        share = trial.steps / gpu.count_steps()
        return 3.2 + abs(math.log2(trial.rate / 2.4e-3)) * 0.01 - 0.1 * math.log2(share)

    losses = play(gpu, near)
    assert {trial.arm for trial in losses} == {"init"}
    factor = summarize(gpu, describe(losses))["factors"]["target"]
    assert factor["loss"] == 3.28
    assert factor["mean"] == pytest.approx(2**0.8, rel=0.01)


def test_steps_to_a_loss_lie_between_runs() -> None:
    points = [(100, 5.0), (50, 5.5), (25, 6.0)]
    assert count_to_reach(5.5, points) == pytest.approx(50)
    assert count_to_reach(5.25, points) == pytest.approx(math.sqrt(50 * 100))
    assert count_to_reach(4.9, points) is None
    assert count_to_reach(6.5, points) == 25, "no fewer were tried"
    assert count_to_reach(5.2, [(100, 5.0), (50, math.inf)]) == 100


def test_the_interval_is_students() -> None:
    found = find_interval([1.0, 2.0, 4.0])
    assert found is not None
    # scipy.stats.t.interval(0.95, 2, 7 / 3, scipy.stats.sem([1, 2, 4]))
    assert found == pytest.approx([-1.4612, 6.1279], abs=2e-3)
    assert find_interval([1.0]) is None


def test_a_seed_that_never_reaches_the_loss_makes_no_factor() -> None:
    losses = play(SMALL)
    assert find_factor(SMALL, 1.0, losses)["mean"] is None
    far = find_factor(SMALL, 9.0, losses)
    assert far["is_at_least"]


def test_every_arm_differs_from_the_one_before_in_one_thing() -> None:
    arms = [*ARMS.values()]
    for before, arm in pairwise(arms):
        changed = {
            name
            for name in before.settings.keys() | arm.settings.keys()
            if before.settings.get(name) != arm.settings.get(name)
        }
        assert len(changed) + (before.shape != arm.shape) == 1, arm.title


def test_the_tables_say_what_the_numbers_are(tmp_path: Path) -> None:
    result = summarize(SMALL, describe(play(SMALL)))
    path = tmp_path / "learn.json"
    path.write_text(json.dumps(result))
    text = make_tables(path)
    assert "| nanoGPT as shipped | 0.0006 | 6.051 (6.049 to 6.053) | 40 |" in text
    assert f"| {ARMS['muon'].title} | 0.0096 | 5.401 (5.399 to 5.403) | 40 |" in text
    assert "nanoGPT tuned, 6.001: 3.9" in text or "nanoGPT tuned, 6.001: 4.0" in text
    # At 0.245 of the tokens the loss is 6.009, above the baseline's; at 0.35 it is far below.
    assert "; runs of 0.35 of the tokens have intervals below its interval" in text
    assert "- a token of that recipe takes 1.0 times the CPU time of nanoGPT's" in text


def test_results_that_are_there_are_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = replace(SMALL, num_seeds=1)
    monkeypatch.setattr(
        "benchmarks.learn.run.read_manifest", lambda folder: type("M", (), {"dataset_id": "x"})
    )
    ran: list[str] = []

    def run_process(trial: Trial, options: Any) -> Trial:
        from benchmarks.learn.run import describe_trial

        if len(ran) == 7:
            raise KeyboardInterrupt
        ran.append(trial.name)
        result = describe_trial(form, trial, tmp_path)
        result |= {"loss": invent_loss(trial), "cpu_seconds": 1.0}
        command.result_path(tmp_path, trial).write_text(json.dumps(result))
        return trial

    monkeypatch.setattr(command, "run_process", run_process)
    options = type("Options", (), {"work": tmp_path, "jobs": 1})()
    with pytest.raises(KeyboardInterrupt):
        command.run_all(form, options)
    assert len(ran) == 7
    monkeypatch.setattr(command, "run_process", lambda *_: pytest.fail("not yet"))
    first, *_ = (path for path in (tmp_path / "trials").iterdir())
    # Another setting is another trial: its result does not count.
    stale = json.loads(first.read_text())
    stale["settings"]["training.weight_decay"] = 7
    first.write_text(json.dumps(stale))
    again: list[str] = []

    def go_on(trial: Trial, options: Any) -> Trial:
        again.append(trial.name)
        ran.clear()
        return run_process(trial, options)

    monkeypatch.setattr(command, "run_process", go_on)
    results = command.run_all(form, options)
    assert len(again) == len(results) - 6
    assert first.name.removesuffix(".json") in again


def test_the_settings_of_every_trial_are_a_runs() -> None:
    from benchmarks.learn.run import list_settings

    for form in FORMS.values():
        for arm in ARMS:
            settings = list_settings(form, Trial(arm, 1e-3, 1, form.count_steps()))
            words = [f"{name}={value}" for name, value in settings.items()]
            config = load_config(None, words)
            assert config.samples_per_step(1) * form.max_seq_length == form.tokens_per_step
            assert config.training.warmup_steps == pytest.approx(0.05 * form.count_steps(), abs=1)
