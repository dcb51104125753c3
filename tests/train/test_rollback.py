"""Rollback: a run goes back from a bad step, past its samples, and tells of their documents."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train.loop
import train.take_step
from model.checkpoints.seal import CheckpointError, seal
from shards.inspect.trace import trace_samples
from shards.reader import open_shards
from tests.runs import make_overrides, read_metrics, run_small
from tests.servers.forked import Forked, run_ranks
from tests.train.test_bad_steps import bent
from tests.train.test_train import (
    assert_equal_bits,
    checkpoint_tensors,
    flip_byte,
    list_names,
)
from train.checkpoints.folder import remove_checkpoint
from train.checkpoints.position import read_position
from train.run import Run
from train.tracing.runs import trace_run

Tensor = torch.Tensor
# Step 7 is bad; the newest checkpoint that is two steps older is that of step 4, and a step takes
# four samples: 16 to 27 are passed over.
SETTINGS: dict[str, object] = {
    "training__on_bad_step": "rollback",
    "training__spike_window": 2,
    "training__save_steps": 2,
    "training__num_training_steps": 10,
}
# The samples, by number, with which the bad step ends.
BAD = (28,)


def spoil(bad: tuple[int, ...], run: Run, total: Tensor, factor: float = 3.0) -> Tensor:
    """A step that ends with one of these samples has a loss that is `factor` times as large."""
    return total * factor if run.batches.consumed in bad else total


def run_bad(shards: Path, folder: Path, bad: tuple[int, ...] = BAD, **changes: object) -> None:
    with bent(lambda run, total: spoil(bad, run, total)):
        run_small(shards, folder, **SETTINGS | changes)


def read_bad_steps(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "logs" / "bad-steps.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def read_history(folder: Path, step: int) -> list[tuple[int, int, int]]:
    history = read_position(folder / "checkpoints" / f"checkpoint-{step}").history
    return [(s.first_step, s.first_sample, s.samples_per_step) for s in history]


def test_a_run_goes_back_and_past_the_samples_since(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_bad(tiny_shards, tmp_path)
    said = capsys.readouterr().err
    assert "over 2 steps; back to step 4, and past all samples since; bad-steps.jsonl in " in said
    assert list_names(tmp_path) == [f"checkpoint-{step}" for step in (10, 2, 4, 6, 8)]
    assert read_history(tmp_path, 4) == [(0, 0, 4)]
    assert read_history(tmp_path, 6) == read_history(tmp_path, 10) == [(0, 0, 4), (4, 28, 4)]
    assert read_metrics(tmp_path, "bad_steps")[10] == 1
    samples = read_metrics(tmp_path, "samples")
    assert [samples[step] for step in range(1, 11)] == [4, 8, 12, 16, 32, 36, 40, 44, 48, 52]
    log = (tmp_path / "logs" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in log if "loss" in json.loads(line)]
    assert steps == [*range(1, 11)]


def test_the_learning_goes_on_as_if_the_samples_had_not_been_there(
    tiny_shards: Path, tmp_path: Path
) -> None:
    """Step 5 is what it is for weights and moments of step 4, and the samples behind the bad."""
    run_bad(tiny_shards, tmp_path / "bad")
    run_bad(tiny_shards, tmp_path / "plain", bad=())
    checkpoints = tmp_path / "plain" / "checkpoints"
    for step in (6, 8, 10):
        remove_checkpoint(checkpoints / f"checkpoint-{step}")
    state = checkpoints / "checkpoint-4" / "training_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"samples_consumed": 28}))
    seal(state.parent)
    run_bad(tiny_shards, tmp_path / "plain", bad=())
    assert_equal_bits(*(checkpoint_tensors(tmp_path / name, 10) for name in ("bad", "plain")))


def test_the_documents_of_a_bad_step_are_told(tiny_shards: Path, tmp_path: Path) -> None:
    run_bad(tiny_shards, tmp_path)
    [told] = read_bad_steps(tmp_path)
    assert (told["step"], told["action"], told["back_to_step"]) == (7, "rollback", 4)
    assert (told["first_sample"], told["next_sample"]) == (24, 28)
    losses = {entry["sample"]: entry["loss"] for entry in told["samples"]}
    assert sorted(losses) == [24, 25, 26, 27]
    assert list(losses.values()) == sorted(losses.values(), reverse=True)
    # The step's loss was made three times as large.
    assert sum(losses.values()) / 4 == pytest.approx(told["loss"] / 3, abs=1e-5)
    shards = open_shards(tiny_shards)
    order = trace_run(shards, tmp_path / "checkpoints").order
    for sample, [(start, _)], documents in trace_samples(
        shards, "train", order, np.array([*losses])
    ):
        [entry] = [entry for entry in told["samples"] if entry["sample"] == sample]
        assert entry["start"] == start
        hashes = [document.doc_hash for document in documents]
        assert [document["doc_hash"] for document in entry["documents"]] == hashes
        assert entry["documents"][0]["source_file"] == documents[0].source_file


def test_trace_knows_what_was_passed_over(tiny_shards: Path, tmp_path: Path) -> None:
    run_bad(tiny_shards, tmp_path)
    shards = open_shards(tiny_shards)
    tracer = trace_run(shards, tmp_path / "checkpoints")
    seen = {step: [s for s, _, _ in tracer.documents_of_step(step)] for step in range(1, 11)}
    assert seen[4] == [12, 13, 14, 15]
    assert seen[5] == [28, 29, 30, 31]
    for step in (3, 5, 10):
        for _, _, documents in tracer.documents_of_step(step):
            assert all(step in tracer.steps_of_document(document) for document in documents)
    for sample, _, documents in trace_samples(shards, "train", tracer.order, np.arange(16, 28)):
        for document in documents:
            steps = tracer.steps_of_document(document)
            assert all(
                any(document in found for _, _, found in tracer.documents_of_step(step))
                for step in steps
            ), sample


def die_twice() -> None:
    """The run meets its bad step; then it is killed when it has gone back and taken a step."""
    add_gradients = train.take_step.add_gradients

    def add(run: Run) -> Tensor:
        total = spoil(BAD, run, add_gradients(run))
        if run.batches.consumed == int(os.environ["DIES_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return total

    train.take_step.add_gradients = add


@pytest.mark.parametrize("dies_at", [32, 40])
def test_a_run_that_is_killed_after_it_went_back_does_so_again(
    tiny_shards: Path, tmp_path: Path, dies_at: int
) -> None:
    """At sample 32 no checkpoint knows yet that it went back; at 40 that of step 6 does."""
    run_bad(tiny_shards, tmp_path / "straight")
    words = ["train", *make_overrides(tiny_shards, tmp_path / "killed", **SETTINGS)]
    for dies in (dies_at, 0):
        process = Forked(words, environment={"DIES_AT": str(dies)}, setup=die_twice)
        _, errors = process.communicate()
        assert process.returncode == (-signal.SIGKILL if dies else 0), errors
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert_equal_bits(checkpoint_tensors(straight, 10), checkpoint_tensors(killed, 10))
    for name in ("loss", "samples", "bad_steps"):
        assert read_metrics(straight, name) == read_metrics(killed, name)
    assert read_bad_steps(straight) == read_bad_steps(killed)
    assert list_names(straight) == list_names(killed)


def spoil_second_rank() -> None:
    """On rank 1 alone the loss of step 7 is NaN; a step takes eight samples."""
    add_gradients = train.take_step.add_gradients

    def add(run: Run) -> Tensor:
        return spoil((56,) if run.rank.rank else (), run, add_gradients(run), math.nan)

    train.take_step.add_gradients = add


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_go_back_together(tiny_shards: Path, tmp_path: Path, strategy: str) -> None:
    words = make_overrides(tiny_shards, tmp_path, **SETTINGS, distributed__strategy=strategy)
    run_ranks(2, words, spoil_second_rank)
    assert read_history(tmp_path, 10) == [(0, 0, 8), (4, 56, 8)]
    [told] = read_bad_steps(tmp_path)
    assert (told["step"], told["loss"], told["back_to_step"]) == (7, None, 4)
    assert told["rank_losses"][0] > 0
    assert told["rank_losses"][1] is None
    owners = {entry["sample"]: entry["rank"] for entry in told["samples"]}
    assert owners == {48 + n: n // 2 % 2 for n in range(8)}
    # One rank with the same samples, in the same places.
    one = {"training__gradient_accumulation_steps": 4}
    with bent(lambda run, total: spoil((56,), run, total, math.nan)):
        run_small(tiny_shards, tmp_path / "one", **SETTINGS | one)
    assert read_metrics(tmp_path) == pytest.approx(read_metrics(tmp_path / "one"), abs=1e-4)


def test_a_run_that_does_not_get_on_ends_with_a_report(tiny_shards: Path, tmp_path: Path) -> None:
    """Whatever samples follow step 6: from step 7 on all are bad."""
    bad = tuple(range(28, 400, 4))
    message = r"step 3: went back 2 times in a row without getting beyond step 7, and the step is"
    with pytest.raises(ValueError, match=message):
        run_bad(tiny_shards, tmp_path, bad, training__max_rollbacks=2)
    assert [told["back_to_step"] for told in read_bad_steps(tmp_path)] == [4, 2]


def test_without_a_good_checkpoint_the_step_is_skipped(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_bad(tiny_shards, tmp_path, (12,))
    assert "it was not applied, as no checkpoint is 2 steps older" in capsys.readouterr().err
    assert read_metrics(tmp_path, "skipped_steps")[10] == 1
    assert read_metrics(tmp_path, "samples")[10] == 40


def test_a_damaged_checkpoint_is_passed_over(tiny_shards: Path, tmp_path: Path) -> None:
    def damage(run: Run, total: Tensor) -> Tensor:
        if run.batches.consumed == BAD[0]:
            flip_byte(run.saver.folder / "checkpoint-4" / "model.safetensors")
        return spoil(BAD, run, total)

    with bent(damage):
        run_small(tiny_shards, tmp_path, **SETTINGS)
    assert read_history(tmp_path, 10) == [(0, 0, 4), (2, 28, 4)]


def test_weights_that_were_read_in_part_are_not_trained_on(
    tiny_shards: Path, tmp_path: Path
) -> None:
    def damage(run: Run, total: Tensor) -> Tensor:
        if run.batches.consumed == BAD[0]:
            for step in (2, 4):
                flip_byte(run.saver.folder / f"checkpoint-{step}" / "model.safetensors")
        return spoil(BAD, run, total)

    with bent(damage), pytest.raises(CheckpointError, match=r"checkpoint-4.* no other checkpoint"):
        run_small(tiny_shards, tmp_path, **SETTINGS)


def test_tensorboard_shows_no_step_twice(tiny_shards: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_bad(tiny_shards, tmp_path)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    [tag] = [tag for tag in events.Tags()["scalars"] if tag in ("train/loss", "loss/train")]
    shown = [(event.step, event.value) for event in events.Scalars(tag)]
    assert [step for step, _ in shown] == [*range(1, 11)]
    assert dict(shown) == pytest.approx(read_metrics(tmp_path), rel=1e-6)
