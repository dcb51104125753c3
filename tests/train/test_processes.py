"""Real processes: killed while they save, told to stop, and started again with the same command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train.checkpoints.folder
from model.checkpoints.seal import list_checkpoints, verify
from tests.runs import make_overrides, read_metrics, run_small
from tests.servers.forked import Forked, run_ranks
from train.__main__ import main
from train.checkpoints.folder import UNFINISHED

Process = Forked | subprocess.Popen[str]


def start(overrides: list[str], ranks: int = 1, dies: bool = False) -> Process:
    """A run of one rank, or of several under torchrun; with `dies`, one that dies in a save."""
    if ranks == 1:
        return Forked(["train", *overrides], setup=die_in_save if dies else None)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    program = [__file__] if dies else ["-m", "train"]
    command += ["--nproc_per_node", str(ranks), *program, *overrides]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def die_in_save() -> None:
    """Have the rank that writes kill itself where a checkpoint's files are there, but no seal."""
    seal = train.checkpoints.folder.seal

    def seal_or_die(folder: Path, sealed: Any) -> Any:
        if folder.name.endswith("checkpoint-9"):
            os.kill(os.getpid(), signal.SIGKILL)
        return seal(folder, sealed)

    train.checkpoints.folder.seal = seal_or_die


def wait_for(condition: object, process: Process, seconds: float = 200) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.002)


def same_model(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_while_it_saves_it_goes_on_from_the_checkpoint_before(
    small_shards: Path, tmp_path: Path, ranks: int
) -> None:
    """SIGKILL of the rank that writes, at a moment when a checkpoint is half-written."""
    settings = {"training__num_training_steps": 12, "training__save_steps": 3}
    overrides = make_overrides(small_shards, tmp_path / "killed", **settings)
    folder = tmp_path / "killed" / "checkpoints"
    process = start(overrides, ranks, dies=True)
    process.communicate()
    assert process.returncode != 0
    assert step_of(folder) == 6
    assert (folder / f"{UNFINISHED}checkpoint-9/model.safetensors").exists()

    process = start(overrides, ranks)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert f"resuming from {folder}/checkpoint-6: step 6" in errors
    if ranks == 1:
        run_small(small_shards, tmp_path / "straight", **settings)
    else:
        run_ranks(ranks, make_overrides(small_shards, tmp_path / "straight", **settings))
    newest = tmp_path / "straight" / "checkpoints" / "checkpoint-12"
    assert same_model(folder / "checkpoint-12", newest)
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "straight")
    assert not list(folder.glob(f"{UNFINISHED}*"))


def test_killed_at_random_moments_every_checkpoint_is_whole(
    small_shards: Path, tmp_path: Path
) -> None:
    settings = {"training__num_training_steps": 4000, "training__save_steps": 1}
    overrides = make_overrides(small_shards, tmp_path, **settings)
    folder = tmp_path / "checkpoints"
    newest = 0
    for delay in (0.05, 0.21, 0.37):
        process = start(overrides)
        wait_for(lambda before=newest: step_of(folder) > before, process)
        time.sleep(delay)
        process.kill()
        process.communicate()
        for checkpoint in list_checkpoints(folder):
            verify(checkpoint)
        newest = step_of(folder)


def step_of(folder: Path) -> int:
    """The step of the newest complete checkpoint; 0 where there is none."""
    names = [checkpoint.name for checkpoint in list_checkpoints(folder)]
    return int(names[0].removeprefix("checkpoint-")) if names else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_the_next_start_goes_on(
    small_shards: Path, tmp_path: Path, number: signal.Signals
) -> None:
    overrides = make_overrides(small_shards, tmp_path, training__num_training_steps=100_000)
    log = tmp_path / "logs" / "metrics.jsonl"
    process = start(overrides)
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 3, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    [checkpoint] = list_checkpoints(tmp_path / "checkpoints")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert f"stopped at step {step:,}; the same command resumes" in errors
    overrides = make_overrides(small_shards, tmp_path, training__num_training_steps=step + 2)
    process = start(overrides)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert sorted(read_metrics(tmp_path)) == list(range(1, step + 3))


def test_a_signal_to_torchrun_stops_all_ranks_at_one_step(
    small_shards: Path, tmp_path: Path
) -> None:
    overrides = make_overrides(small_shards, tmp_path, training__num_training_steps=100_000)
    log = tmp_path / "logs" / "metrics.jsonl"
    process = start(overrides, ranks=2)
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 3, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0
    [checkpoint] = list_checkpoints(tmp_path / "checkpoints")
    verify(checkpoint)
    assert int(checkpoint.name.removeprefix("checkpoint-")) == max(read_metrics(tmp_path))


def test_a_stop_during_an_evaluation_is_not_lost(small_shards: Path, tmp_path: Path) -> None:
    settings = {"training__eval_steps": 1, "training__eval_windows": 10**6}
    overrides = make_overrides(
        small_shards, tmp_path, training__num_training_steps=10**5, **settings
    )
    log = tmp_path / "logs" / "metrics.jsonl"
    process = start(overrides)
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 3, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    assert len(list_checkpoints(tmp_path / "checkpoints")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training.learning_rat=1"], "no key 'training.learning_rat'; did you mean training.lea"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file; --config takes a path or one"),
        (["data.shards=nowhere"], "nowhere: no such folder; make the shards with: velocity prep"),
        (["distributed.backend=nccl"], "distributed.backend is nccl, but torch finds no GPU here"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "train", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 78
    assert "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith("velocity: ")
    assert message in process.stderr.splitlines()[-1]


if __name__ == "__main__":  # As torchrun starts it.
    die_in_save()
    main()
