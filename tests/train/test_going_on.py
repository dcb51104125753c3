"""Going on: one rank reads for all, machines with folders of their own agree, memory stays."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import train.loop
import train.run
from model.checkpoints import seal, tensor_file
from model.checkpoints.seal import list_checkpoints
from tests.runs import make_overrides, read_metrics, run_small
from tests.servers.forked import Forked
from tests.servers.ports import find_port
from tests.train.test_saving import assert_same_state
from tests.train.test_train import flip_byte
from train.checkpoints.resume import refuse_newer_elsewhere
from train.run import Run

Shards = Path


def start_ranks(
    words: Sequence[Sequence[str]], setup: Callable[[], None] | None = None
) -> list[Forked]:
    """A run of several ranks, each with words of its own."""
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_port())}
    variables["WORLD_SIZE"] = str(len(words))
    return [
        Forked(
            ["train", *own],
            environment=variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            setup=setup,
        )
        for rank, own in enumerate(words)
    ]


def finish(ranks: list[Forked]) -> tuple[list[int], list[str]]:
    """The exit codes of the ranks, and what each of them said."""
    said = [rank.communicate(timeout=400)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], said


def put_apart(shards: Shards, folder: Path, **settings: object) -> list[list[str]]:
    """The words of two ranks whose machines have folders of their own."""
    return [make_overrides(shards, folder / name, **settings) for name in ("first", "second")]


# The first rank reads


def test_one_rank_reads_and_the_others_receive(small_shards: Shards, tmp_path: Path) -> None:
    """Only the first one has the folder; its newest checkpoint is damaged in the last tensors."""
    settings = {"training__save_steps": 2, "training__num_training_steps": 6}
    codes, said = finish(start_ranks(put_apart(small_shards, tmp_path, **settings)))
    assert codes == [0, 0], said
    folder = tmp_path / "first" / "checkpoints"
    assert list_checkpoints(tmp_path / "second" / "checkpoints") == []
    shutil.copytree(folder / "checkpoint-6", tmp_path / "straight")
    log = read_metrics(tmp_path / "first")
    damaged = folder / "checkpoint-6" / "optimizer.safetensors"
    flip_byte(damaged)
    codes, said = finish(start_ranks(put_apart(small_shards, tmp_path, **settings)))
    assert codes == [0, 0], said
    assert f"{damaged}: damaged; its sha256 is not the one in checksums.json; trying the" in said[0]
    assert f"resuming from {folder}/checkpoint-4: step 4" in said[0]
    assert "resuming" not in said[1]
    assert_same_state(folder / "checkpoint-6", tmp_path / "straight")
    assert read_metrics(tmp_path / "first") == log


def test_where_another_rank_sees_a_newer_checkpoint_the_run_is_refused(
    small_shards: Shards, tmp_path: Path
) -> None:
    """As when the first rank comes to lie on another machine; it would start from scratch."""
    run_small(small_shards, tmp_path / "second", training__num_training_steps=2)
    codes, said = finish(start_ranks(put_apart(small_shards, tmp_path)))
    assert codes == [1, 1]
    assert "velocity: " not in said[1]
    [line] = [line for line in said[0].splitlines() if line.startswith("velocity: ")]
    assert "sees checkpoint-2 there, but for the first rank, on " in line
    assert "there is none; put infrastructure.output_dir where all machines see the same" in line
    assert not (tmp_path / "first" / "logs" / "metrics.jsonl").exists()


def test_ranks_that_see_older_ones_or_none_follow_the_first() -> None:
    refuse_newer_elsewhere("out", [("a", None), ("b", None)])
    refuse_newer_elsewhere("out", [("a", 40), ("b", None), ("c", 30), ("d", 40)])
    with pytest.raises(OSError, match=r"rank 2, on c, sees checkpoint-50 there, .* on a, check"):
        refuse_newer_elsewhere("out", [("a", 40), ("b", None), ("c", 50), ("d", 45)])


def test_a_checkpoint_is_read_once(
    small_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashing and loading are one pass."""
    run_small(small_shards, tmp_path, training__num_training_steps=4)
    sizes = [path.stat().st_size for path in (tmp_path / "checkpoints").rglob("*.safetensors")]
    before = count_bytes_read()
    run_small(small_shards, tmp_path, training__num_training_steps=4)
    # The tokenizer, the shards' sidecars and JSON files are read as well.
    assert sum(sizes) <= count_bytes_read() - before < 1.5 * sum(sizes)


def count_bytes_read() -> int:
    """Bytes that this process has read by system calls."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def test_a_file_that_fails_while_it_is_read_is_as_a_damaged_one(
    small_shards: Shards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the middle of its tensors: what was read until then is all replaced."""
    run_small(small_shards, tmp_path, training__save_steps=4)
    shutil.copytree(tmp_path / "checkpoints" / "checkpoint-8", tmp_path / "straight")
    read_into = tensor_file.TensorReader.read_into
    count = 0

    def fail_once(reader: Any, target: Any) -> None:
        nonlocal count
        count += 1
        if count == 9:
            raise OSError(5, "Input/output error")
        read_into(reader, target)

    monkeypatch.setattr(tensor_file.TensorReader, "read_into", fail_once)
    run_small(small_shards, tmp_path, training__save_steps=4)
    said = capsys.readouterr().err
    assert "cannot be read ([Errno 5] Input/output error); trying the checkpoint before it" in said
    assert "checkpoint-4: step 4" in said
    assert_same_state(tmp_path / "checkpoints" / "checkpoint-8", tmp_path / "straight")


def test_a_small_file_that_cannot_be_read_is_as_a_damaged_one(
    small_shards: Shards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_small(small_shards, tmp_path, training__save_steps=4)
    newest, before = list_checkpoints(tmp_path / "checkpoints")
    # A seal that vouches for less than a run goes on from.
    listed = json.loads((before / "checksums.json").read_text())
    del listed["files"]["optimizer.safetensors"]
    (before / "checksums.json").write_text(json.dumps(listed))
    hash_file = seal.hash_file

    def fail(path: Path) -> str:
        if path == newest / "config.json":
            raise OSError(5, "Input/output error")
        return hash_file(path)

    monkeypatch.setattr(seal, "hash_file", fail)
    with pytest.raises(ValueError, match="every checkpoint in it is damaged"):
        run_small(small_shards, tmp_path, training__save_steps=4)
    said = capsys.readouterr().err
    assert f"{newest}: cannot be read ([Errno 5] Input/output error); trying" in said
    assert f"{before}: has no optimizer.safetensors" in said


def test_a_change_of_the_samples_a_step_is_said(
    small_shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_small(small_shards, tmp_path, training__num_training_steps=2)
    settings = {"training__batch_size_per_device": 1, "training__num_training_steps": 4}
    run_small(small_shards, tmp_path, **settings)
    said = capsys.readouterr().err
    assert "a step takes 2 samples on 1 ranks, and took 4 before; training.gradient_accum" in said
    assert "training.gradient_accumulation_steps=4 keeps that" in said
    settings |= {"training__gradient_accumulation_steps": 4, "training__num_training_steps": 6}
    run_small(small_shards, tmp_path, **settings)
    assert "training.gradient_accumulation_steps=1 keeps that" not in capsys.readouterr().err


# Memory


def record_peaks() -> None:
    """Write the peak of this process's memory in each step to a file; the first has the start."""
    build_run, take_step = train.loop.build_run, train.loop.take_step
    warm_up = train.run.warm_up
    path = Path(f"peaks-{os.environ['RANK']}")

    def build(*arguments: Any) -> Run:
        reset_peak()
        return build_run(*arguments)

    def take(run: Run) -> tuple[float, float]:
        taken = take_step(run)
        with open(path, "a") as file:
            file.write(f"{read_peak()}\n")
        reset_peak()
        return taken

    def warm_up_and_note(parallel_model: Any, *others: Any) -> None:
        warm_up(parallel_model, *others)
        note = Path(f"buckets-{os.environ['RANK']}")
        note.write_text("arranged" if parallel_model._has_rebuilt_buckets else "not yet")

    train.loop.build_run, train.loop.take_step = build, take
    train.run.warm_up = warm_up_and_note


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def read_peak() -> int:
    """The most memory that this process had since `reset_peak`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_the_first_step_of_a_resumed_run_takes_no_more_memory_than_others(
    small_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks; a model of 106 MB, half of it in blocks, whose gradients DDP may hold twice."""
    monkeypatch.chdir(tmp_path)
    settings: dict[str, object] = {"model__hidden_size": 256, "training__eval_windows": 0}
    settings |= {"model__intermediate_size": 4096, "model__num_hidden_layers": 4}
    in_blocks = 4 * 4 * 3 * 256 * 4096
    peaks = []
    for steps in (2, 6):
        settings["training__num_training_steps"] = steps
        words = make_overrides(small_shards, tmp_path, **settings)
        codes, said = finish(start_ranks([words, words], setup=record_peaks))
        assert codes == [0, 0], said
        peaks = [
            [int(line) for line in Path(f"peaks-{rank}").read_text().split()] for rank in (0, 1)
        ]
    # What costs memory on a GPU; a CPU's resident memory hardly shows it.
    assert [Path(f"buckets-{rank}").read_text() for rank in (0, 1)] == ["arranged"] * 2
    for own in peaks:
        resumed, steady = own[2], max(own[3:])
        assert len(own) == 6
        assert resumed < steady + in_blocks / 4
