"""Saving beside training: what is on disk when, what stays, and what a stop or a full disk does."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event, get_ident
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train.checkpoints.saver
import train.loop
from model.checkpoints.seal import find_checkpoint, list_checkpoints, verify
from tests.runs import make_config, make_overrides, read_metrics, run_small
from tests.servers.forked import run_ranks
from tests.train.test_run_faults import each_step, list_names
from train.checkpoints.folder import step_of
from train.checkpoints.position import OPTIMIZER
from train.checkpoints.snapshot import Snapshot
from train.checkpoints.state import GENERATOR, collect_moments
from train.loop import Outcome
from train.loop import train as train_run
from train.ranks.distributed import Rank
from train.ranks.stop import StopFlag
from train.step.optimizer import make_optimizer
from train.training_config import TrainingConfig

Shards = Path
PATIENCE = "PATIENCE_SECONDS"


def list_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints that are whole."""
    return sorted(step_of(path) for path in list_checkpoints(folder / "checkpoints"))


def hold_writes(monkeypatch: pytest.MonkeyPatch, gate: Event) -> list[int]:
    """Let no checkpoint be written until the gate opens; the steps that were begun."""
    write_files = train.checkpoints.saver.write_files
    begun: list[int] = []

    def wait_and_write(folder: Path, snapshot: Snapshot) -> Any:
        begun.append(snapshot.step)
        assert gate.wait(300)
        return write_files(folder, snapshot)

    monkeypatch.setattr(train.checkpoints.saver, "write_files", wait_and_write)
    return begun


def read_bits(checkpoint: Path) -> dict[str, torch.Tensor]:
    names = ("model.safetensors", OPTIMIZER)
    return {key: value.clone() for n in names for key, value in load_file(checkpoint / n).items()}


def assert_same_state(one: Path, other: Path) -> None:
    """Weights, moments, and what training_state.json says."""
    first, second = read_bits(one), read_bits(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    states = [json.loads((path / "training_state.json").read_text()) for path in (one, other)]
    assert states[0] == states[1]


# Training goes on meanwhile


def test_what_is_saved_is_the_state_of_its_step_though_training_went_on(
    small_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_small(small_shards, tmp_path / "straight", training__num_training_steps=2)
    gate = Event()
    hold_writes(monkeypatch, gate)
    with each_step(monkeypatch, lambda step: gate.set() if step == 6 else None, waits=False):
        run_small(small_shards, tmp_path / "ahead", training__save_steps=2)
    assert_same_state(*(tmp_path / n / "checkpoints/checkpoint-2" for n in ("straight", "ahead")))
    verify(tmp_path / "ahead" / "checkpoints" / "checkpoint-2")


def test_a_save_that_comes_due_during_another_is_left_out_and_said_once(
    small_shards: Shards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gate = Event()
    monkeypatch.setattr(train.checkpoints.saver, PATIENCE, 0.0)
    begun = hold_writes(monkeypatch, gate)
    with each_step(monkeypatch, lambda step: gate.set() if step == 5 else None, waits=False):
        outcome = run_small(small_shards, tmp_path, training__save_steps=1)
    assert outcome.checkpoint == tmp_path / "checkpoints" / "checkpoint-8"
    assert begun[0] == 1
    assert set(begun).isdisjoint({2, 3, 4})
    assert begun[-1] == 8
    said = capsys.readouterr().err
    assert said.count("is left out: the one before it is still being written; ") == 1
    assert sorted(read_metrics(tmp_path)) == list(range(1, 9))


def test_a_permanent_one_waits_for_the_one_before(
    small_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Event()
    monkeypatch.setattr(train.checkpoints.saver, PATIENCE, 0.0)
    monkeypatch.setattr(train.checkpoints.saver, "BEAT_SECONDS", 0.01)
    begun = hold_writes(monkeypatch, gate)
    wait = train.checkpoints.saver.Saver.wait

    def open_and_wait(saver: Any) -> None:
        gate.set()
        wait(saver)

    monkeypatch.setattr(train.checkpoints.saver.Saver, "wait", open_and_wait)
    settings = {"training__save_steps": 2, "training__keep_every_steps": 3}
    run_small(small_shards, tmp_path, **settings, training__num_training_steps=3)
    assert begun == [2, 3]


def test_the_thread_that_trains_copies_and_another_one_writes(
    small_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()
    write_files = train.checkpoints.saver.write_files

    def note_and_write(folder: Path, snapshot: Snapshot) -> Any:
        threads.add(get_ident())
        return write_files(folder, snapshot)

    monkeypatch.setattr(train.checkpoints.saver, "write_files", note_and_write)
    run_small(small_shards, tmp_path, training__save_steps=2, training__num_training_steps=4)
    assert len(threads) == 1
    assert get_ident() not in threads


def test_two_ranks_go_on_bit_for_bit(small_shards: Shards, tmp_path: Path) -> None:
    settings = {"training__save_steps": 2, "training__precision": "fp16"}
    for name, lengths in (("straight", (7,)), ("resumed", (4, 7))):
        for steps in lengths:
            overrides = make_overrides(
                small_shards, tmp_path / name, **settings, training__num_training_steps=steps
            )
            run_ranks(2, overrides)
    folders = [tmp_path / name / "checkpoints" / "checkpoint-7" for name in ("straight", "resumed")]
    assert_same_state(*folders)
    assert read_metrics(tmp_path / "straight") == read_metrics(tmp_path / "resumed")


def test_moments_before_the_first_update_are_zeros_and_change_nothing() -> None:
    """A run whose first steps were all skipped can be saved, and goes on."""
    torch.manual_seed(0)
    models = [torch.nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    rank = Rank(0, 1, 0, torch.device("cpu"))
    optimizers = [make_optimizer(model, TrainingConfig(), rank) for model in models]
    moments = collect_moments(models[1], optimizers[1])
    assert len(moments) == 1 + 2 * 3
    assert not any(value.any() for name, value in moments.items() if name != GENERATOR)
    for model, optimizer in zip(models, optimizers, strict=True):
        for _ in range(3):
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
    first, second = (collect_moments(*pair) for pair in zip(models, optimizers, strict=True))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert torch.equal(models[0].weight, models[1].weight)


# What stays


def test_every_so_manieth_checkpoint_stays(small_shards: Shards, tmp_path: Path) -> None:
    """It is saved for that, too, and a restart does not remove it."""
    settings = {"training__save_steps": 2, "training__save_total_limit": 1}
    settings["training__keep_every_steps"] = 3
    run_small(small_shards, tmp_path, **settings)
    assert list_steps(tmp_path) == [3, 6, 8]
    run_small(small_shards, tmp_path, **settings, training__num_training_steps=10)
    assert list_steps(tmp_path) == [3, 6, 9, 10]


def give_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let evaluations give these losses, one after the other."""
    left = iter(losses)
    monkeypatch.setattr(train.loop, "evaluate", lambda *arguments, **options: [next(left)])


def test_the_best_checkpoint_stays_and_is_found_by_its_name(
    small_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, object] = {"training__save_steps": 2, "training__eval_steps": 2}
    settings |= {"training__save_total_limit": 1, "training__keep_best": "true"}
    folder = tmp_path / "checkpoints"
    give_losses(monkeypatch, [5.0, 3.0, float("nan"), 3.5])
    run_small(small_shards, tmp_path, **settings)
    assert list_steps(tmp_path) == [4, 8]
    assert find_checkpoint(folder / "best") == folder / "checkpoint-4"
    assert json.loads((folder / "best.json").read_text())["validation_loss"] == 3.0
    # After a restart it is still known; and then another one is better.
    give_losses(monkeypatch, [3.1, 2.9, 4.0])
    run_small(small_shards, tmp_path, **settings, training__num_training_steps=10)
    assert list_steps(tmp_path) == [4, 10]
    run_small(small_shards, tmp_path, **settings, training__num_training_steps=14)
    assert list_steps(tmp_path) == [12, 14]
    assert find_checkpoint(folder / "best") == folder / "checkpoint-12"


def test_a_step_that_was_not_saved_is_not_the_best(
    small_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"training__save_steps": 4, "training__eval_steps": 2}
    give_losses(monkeypatch, [1.0, 5.0, 2.0, 6.0])
    run_small(small_shards, tmp_path, **settings, training__keep_best="true")
    assert json.loads((tmp_path / "checkpoints" / "best.json").read_text())["step"] == 4


def test_a_best_step_that_the_run_has_not_come_to_yet_is_forgotten(
    small_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its newest checkpoint is damaged, so it goes on from before the best one."""
    settings: dict[str, object] = {"training__save_steps": 2, "training__eval_steps": 2}
    settings |= {"training__keep_best": "true", "training__num_training_steps": 4}
    give_losses(monkeypatch, [5.0, 3.0])
    run_small(small_shards, tmp_path, **settings)
    (tmp_path / "checkpoints" / "checkpoint-4" / "config.json").write_text("{}")
    give_losses(monkeypatch, [4.0])
    run_small(small_shards, tmp_path, **settings)
    record = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert record == {"step": 4, "validation_loss": 4.0}


# A stop


def stop_during_a_write(
    shards: Shards, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: object
) -> Outcome:
    """A run that is told to stop at step 5, while the save of step 4 is being written."""
    stop, gate = StopFlag(), Event()
    hold_writes(monkeypatch, gate)
    wait = train.checkpoints.saver.Saver.wait

    def open_and_wait(saver: Any) -> None:
        gate.set()
        wait(saver)

    monkeypatch.setattr(train.checkpoints.saver.Saver, "wait", open_and_wait)

    def signal_at(step: int) -> None:
        if step == 5:
            stop.take(signal.SIGTERM)

    with each_step(monkeypatch, signal_at, waits=False):
        return train_run(make_config(shards, folder, training__save_steps=4, **settings), stop)


def test_a_stop_during_a_write_saves_its_own_step_as_well(
    small_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = stop_during_a_write(small_shards, tmp_path, monkeypatch)
    assert (outcome.step, outcome.signal_number) == (5, signal.SIGTERM)
    assert outcome.checkpoint == tmp_path / "checkpoints" / "checkpoint-5"
    assert list_steps(tmp_path) == [4, 5]


def test_a_stop_with_too_little_time_leaves_what_was_being_written(
    small_shards: Shards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patched:
        outcome = stop_during_a_write(small_shards, tmp_path, patched, training__stop_seconds=0)
    assert (outcome.step, outcome.signal_number) == (5, signal.SIGTERM)
    assert outcome.checkpoint == tmp_path / "checkpoints" / "checkpoint-4"
    assert list_names(tmp_path / "checkpoints") == ["checkpoint-4"]
    said = capsys.readouterr().err
    assert "step 5 is not saved: that takes about " in said
    assert "training.stop_seconds leaves 0; the newest checkpoint is " in said
    # It goes on from there, and its log has each step once.
    run_small(small_shards, tmp_path / "straight")
    run_small(small_shards, tmp_path)
    assert_same_state(*(tmp_path / n / "checkpoints/checkpoint-8" for n in (".", "straight")))
    assert read_metrics(tmp_path) == read_metrics(tmp_path / "straight")
    lines = (tmp_path / "logs" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((tmp_path / "straight/logs/metrics.jsonl").read_text().splitlines())


def test_a_stop_with_enough_time_or_no_measure_saves_its_step(
    small_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save takes milliseconds here; and the first one may take any time, so it is tried."""
    for seconds, save_steps in ((60, 2), (0, 100)):
        stop = StopFlag()
        folder = tmp_path / str(seconds)
        settings = {"training__stop_seconds": seconds, "training__save_steps": save_steps}
        with each_step(monkeypatch, lambda step, s=stop: s.take(15) if step == 3 else None):
            outcome = train_run(make_config(small_shards, folder, **settings), stop)
        assert outcome.checkpoint == folder / "checkpoints" / "checkpoint-3"


# Disks


FULL_DISK = """
import os, subprocess, sys
from pathlib import Path
from tests.runs import make_config
from train.loop import train
shards, folder, size = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
disk = folder / "checkpoints"
disk.mkdir(parents=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
settings = {"training__save_steps": 2, "training__save_total_limit": 1}
try:
    train(make_config(shards, folder, **settings))
except OSError as error:
    print("ended by:", error, file=sys.stderr)
print(sorted(os.listdir(disk)), file=sys.stderr)
subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
print("done", train(make_config(shards, folder, **settings)).step, file=sys.stderr)
print(sorted(os.listdir(disk)), file=sys.stderr)
"""


def test_a_disk_with_room_for_one_checkpoint_and_a_half(
    small_shards: Shards, tmp_path: Path
) -> None:
    """The first save fits; those after it are told, and the last one fails the run."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no right to mount")
    command = ["unshare", "-rm", sys.executable, "-c", FULL_DISK, small_shards, tmp_path, "17m"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if "mount:" in done.stderr:
        pytest.skip("no right to mount")
    assert done.returncode == 0, done.stderr
    for step in (4, 6, 8):
        line = f"checkpoint-{step} could not be written ([Errno 28] No space left on device"
        assert line in done.stderr
    assert done.stderr.count("free some disk, it is tried again") == 3
    [ended] = [line for line in done.stderr.splitlines() if line.startswith("ended by:")]
    assert "checkpoint-8 could not be written" in ended
    lists = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert [line.count("'checkpoint-") for line in lists] == [1, 1]
    assert "'checkpoint-2'" in lists[0]
    assert ".unfinished" not in lists[0]
    assert "done 8" in done.stderr
    assert "'checkpoint-8'" in lists[1]


def test_an_error_of_a_step_leaves_the_save_before_it_whole(
    small_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Event()
    hold_writes(monkeypatch, gate)

    def fail(step: int) -> None:
        if step == 5:
            gate.set()
            raise RuntimeError("out of memory")

    with (
        each_step(monkeypatch, fail, waits=False),
        pytest.raises(RuntimeError, match="out of memory"),
    ):
        run_small(small_shards, tmp_path, training__save_steps=4)
    assert list_steps(tmp_path) == [4]
    verify(tmp_path / "checkpoints" / "checkpoint-4")
