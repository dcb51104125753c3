"""What would end a run, mix it with another, or lose some of it: folders, disks, logs, signals."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch
from filelock import FileLock

import train.loop
from model.checkpoints.seal import list_checkpoints
from shards.disk import lock
from shards.disk.lock import hold
from tests.runs import make_config, make_overrides, read_metrics, run_small
from tests.servers.forked import Forked, run_forked
from tests.servers.ports import find_port
from train.checkpoints.claim import LOCK, claim_folders
from train.config import DistributedConfig
from train.loop import Outcome, Step
from train.ranks.distributed import Rank, join_ranks
from train.ranks.stop import StopFlag
from train.run import Run

Shards = Path


@contextmanager
def each_step(
    monkeypatch: pytest.MonkeyPatch, do: Callable[[int], None], waits: bool = True
) -> Iterator[None]:
    """Call `do` with the number of each step after it was taken, and the save before it ended."""
    take_step = train.loop.take_step

    def take_and_do(run: Run) -> Step:
        taken = take_step(run)
        if waits:
            run.saver.wait()
        do(run.step)
        return taken

    with monkeypatch.context() as patched:
        patched.setattr(train.loop, "take_step", take_and_do)
        yield


def wait_for_steps(process: Forked, log: Path, count: int = 3) -> None:
    deadline = time.monotonic() + 200
    while not (log.exists() and log.read_text().count("\n") > count):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it took no step"
        time.sleep(0.01)


def list_names(folder: Path) -> list[str]:
    """The checkpoints in a folder, and what is left of others."""
    kept = ("checkpoint-", ".unfinished-", ".removed-")
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(kept))


def describe_steps(log: Path) -> list[int]:
    """The steps of a log's lines with a loss."""
    records = map(json.loads, log.read_text().splitlines())
    return [record["step"] for record in records if "loss" in record]


# Who writes where


def test_of_two_runs_in_one_folder_the_second_is_refused(
    small_shards: Shards, tmp_path: Path
) -> None:
    overrides = make_overrides(
        small_shards, tmp_path, training__num_training_steps=10**6, training__save_steps=10**6
    )
    process = Forked(["train", *overrides])
    log = tmp_path / "logs" / "metrics.jsonl"
    wait_for_steps(process, log)
    # The same folder by another name; then another folder, and the same log.
    (tmp_path / "link").symlink_to(tmp_path / "checkpoints")
    link, other = tmp_path / "link", tmp_path / "other"
    for folder, writes in ((link, "checkpoints"), (other, "log")):
        name = tmp_path / "logs" if writes == "log" else folder
        second = run_forked(["train", *overrides, f"infrastructure.output_dir={folder}"])
        assert second.returncode == 78
        [line] = second.stderr.splitlines()
        assert line.startswith(f"velocity: {name}: another run is writing its {writes} there (")
        assert f"process {process.pid}, since " in line
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    steps = describe_steps(log)
    assert steps == list(range(1, steps[-1] + 1))
    assert list_names(tmp_path / "checkpoints") == [f"checkpoint-{steps[-1]}"]


@pytest.mark.parametrize("sign", ["holder", "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_the_lock_of_a_lost_machine_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    """A file server gives it back after a while."""
    monkeypatch.setattr(lock, "PROBE_SECONDS", 0.1)
    config = make_config(tmp_path / "shards", tmp_path).infrastructure
    rank = Rank(0, 1, 0, torch.device("cpu"))
    with (
        hold(tmp_path, Path(config.output_dir, LOCK), "taken"),
        pytest.raises(ValueError, match="another run is writing its checkpoints there"),
        claim_folders(config, rank),
    ):
        pass
    lost = FileLock(Path(config.output_dir, LOCK), thread_local=False)
    lost.acquire()
    if sign == "holder":
        lock.note_path(Path(config.output_dir, LOCK)).write_text("node7, process 1, since then")
    else:
        monkeypatch.setenv(sign, "1")
    Timer(0.5, lost.release).start()
    with claim_folders(config, rank):
        assert not lost.is_locked


def test_the_ranks_of_srun_are_one_run(small_shards: Shards, tmp_path: Path) -> None:
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}
    step["MASTER_PORT"] = str(find_port())
    words = ["train", *make_overrides(small_shards, tmp_path)]
    ranks = [
        Forked(words, environment=step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank})
        for rank in ("0", "1")
    ]
    said = [rank.communicate(timeout=400)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert describe_steps(tmp_path / "logs" / "metrics.jsonl") == list(range(1, 9))
    assert read_metrics(tmp_path, "samples")[8] == 64  # Twice those of one rank.


def test_where_the_first_rank_fails_it_alone_says_why(small_shards: Shards, tmp_path: Path) -> None:
    run_small(small_shards, tmp_path, training__num_training_steps=2)
    overrides = make_overrides(
        small_shards, tmp_path, infrastructure__resume_from_checkpoint="null"
    )
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_port())}
    ranks = [
        Forked(["train", *overrides], environment=together | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    said = [rank.communicate(timeout=400)[1].splitlines() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [78, 78]
    assert [line[:40] for line in said[0]] == [f"velocity: {tmp_path}"[:40]]
    assert said[1] == []


def test_ranks_that_cannot_meet_say_where(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": port}
        for name, value in (variables | {"MASTER_ADDR": "127.0.0.1"}).items():
            monkeypatch.setenv(name, value)
        match = rf"cannot meet at 127.0.0.1:{port} \(.*\); set MASTER_PORT to a port that is free"
        with pytest.raises(ConnectionError, match=match), join_ranks(DistributedConfig()):
            pass


# Where a run starts


def test_a_named_checkpoint_is_obeyed_or_refused(
    small_shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"training__num_training_steps": 4, "training__save_steps": 2}
    run_small(small_shards, tmp_path, **settings)
    folder = tmp_path / "checkpoints"
    named = {"infrastructure__resume_from_checkpoint": folder / "checkpoint-2"}
    match = r"names .*checkpoint-2, but .* holds checkpoint-4, which does not come from it; leave"
    with pytest.raises(ValueError, match=match):
        run_small(small_shards, tmp_path, **settings | named)
    # With nothing later it goes on from there, and so does the same command from what it made.
    shutil.rmtree(folder / "checkpoint-4")
    run_small(small_shards, tmp_path, **settings | named)
    capsys.readouterr()
    settings["training__num_training_steps"] = 6
    named = {"infrastructure__resume_from_checkpoint": f"{folder}/../checkpoints/checkpoint-2/"}
    run_small(small_shards, tmp_path, **settings | named)
    said = capsys.readouterr().err
    assert "checkpoint-4 comes from " in said
    assert "checkpoint-4: step 4" in said


def test_a_branch_goes_on_from_its_own_checkpoints_and_no_others(
    small_shards: Shards, tmp_path: Path
) -> None:
    run_small(small_shards, tmp_path / "a", training__num_training_steps=4)
    named = tmp_path / "a" / "checkpoints" / "checkpoint-4"
    settings = {"infrastructure__resume_from_checkpoint": named}
    run_small(small_shards, tmp_path / "b", **settings, training__num_training_steps=6)
    shutil.rmtree(named)  # The first run went on, and keeps few.
    run_small(small_shards, tmp_path / "b", **settings)
    assert sorted(read_metrics(tmp_path / "b")) == [5, 6, 7, 8]
    run_small(small_shards, tmp_path / "c", training__num_training_steps=2)
    with pytest.raises(ValueError, match="holds checkpoint-2, which does not come from it"):
        run_small(small_shards, tmp_path / "c", **settings)


def test_what_a_kill_left_of_checkpoints_is_removed(small_shards: Shards, tmp_path: Path) -> None:
    settings = {"training__num_training_steps": 4, "training__save_steps": 1}
    run_small(small_shards, tmp_path, **settings)
    folder = tmp_path / "checkpoints"
    # A seal is gone, as old versions began; half of another; one moved away; and an empty one.
    (folder / "checkpoint-1" / "checksums.json").unlink()
    for name in ("checksums.json", "training_state.json", "config.json", "optimizer.safetensors"):
        (folder / "checkpoint-2" / name).unlink()
    (folder / ".removed-checkpoint-0").mkdir()
    (folder / ".unfinished-checkpoint-5").mkdir()
    (folder / "checkpoint-7").mkdir()
    # Someone else's model, and a link to one: of these nothing is removed.
    foreign = folder / "checkpoint-9"
    foreign.mkdir()
    (foreign / "model.safetensors").write_text("years of work")
    shutil.copytree(folder / "checkpoint-4", tmp_path / "elsewhere" / "best")
    (folder / ".removed-checkpoint-8").symlink_to(tmp_path / "elsewhere")
    run_small(small_shards, tmp_path, **settings, training__save_total_limit=1)
    assert list_names(folder) == ["checkpoint-4", "checkpoint-9"]
    assert (foreign / "model.safetensors").exists()
    assert (tmp_path / "elsewhere" / "best" / "checksums.json").exists()


def test_a_link_to_a_checkpoint_is_pruned_and_its_files_stay(
    small_shards: Shards, tmp_path: Path
) -> None:
    run_small(small_shards, tmp_path, training__num_training_steps=2)
    folder = tmp_path / "checkpoints"
    os.rename(folder / "checkpoint-2", tmp_path / "kept")
    (folder / "checkpoint-2").symlink_to(tmp_path / "kept")
    run_small(small_shards, tmp_path, training__save_total_limit=1)
    assert list_names(folder) == ["checkpoint-8"]
    assert (tmp_path / "kept" / "checksums.json").exists()


def test_a_validation_loss_that_a_kill_prevented_is_taken(
    small_shards: Shards, tmp_path: Path
) -> None:
    settings = {"training__num_training_steps": 4, "training__eval_steps": 2}
    run_small(small_shards, tmp_path, **settings)
    log = tmp_path / "logs" / "metrics.jsonl"
    before = log.read_text()
    for _ in range(2):  # And not a second time.
        lines = [line for line in before.splitlines(keepends=True) if '"step": 4, "val' not in line]
        log.write_text("".join(lines))
        assert len(lines) == 5
        assert run_small(small_shards, tmp_path, **settings).validation_loss is not None
        assert log.read_text() == before
        assert run_small(small_shards, tmp_path, **settings).validation_loss is None
        assert log.read_text() == before


# Logs


def test_a_log_lies_beside_its_checkpoints(small_shards: Shards, tmp_path: Path) -> None:
    for name in ("a", "b"):
        settings = {"infrastructure__output_dir": tmp_path / name, "infrastructure__seed": 1}
        run_small(small_shards, tmp_path, **settings, infrastructure__logging_dir="null")
        assert describe_steps(tmp_path / name / "logs" / "metrics.jsonl") == list(range(1, 9))


def test_a_run_that_logs_elsewhere_than_before_says_so(
    small_shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one of before logs lay beside their checkpoints."""
    run_small(small_shards, tmp_path, training__num_training_steps=4)
    log = (tmp_path / "logs" / "metrics.jsonl").read_text()
    run_small(small_shards, tmp_path, infrastructure__logging_dir="null")
    beside = tmp_path / "checkpoints" / "logs"
    said = f"the log goes on in {beside}; what was logged before is in {tmp_path}/logs"
    assert said in capsys.readouterr().err.splitlines()
    assert (tmp_path / "logs" / "metrics.jsonl").read_text() == log
    assert describe_steps(beside / "metrics.jsonl") == [5, 6, 7, 8]


def count_events(folder: Path) -> dict[int, float]:
    """The losses that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("loss/train")}


@pytest.mark.parametrize("way", ["branch", "copy", "continued"])
def test_no_line_of_another_run_is_lost(small_shards: Shards, tmp_path: Path, way: str) -> None:
    """One logging_dir for two runs, one after the other."""
    run_small(small_shards, tmp_path, training__save_steps=4)
    first, logs = tmp_path / "checkpoints", tmp_path / "logs"
    log = (logs / "metrics.jsonl").read_text()
    losses = count_events(logs)
    settings: dict[str, object] = {"infrastructure__output_dir": tmp_path / "other"}
    settings["training__num_training_steps"] = 5
    if way == "branch":
        settings["infrastructure__resume_from_checkpoint"] = first / "checkpoint-4"
    else:  # The folder of the first, copied with its newest checkpoint or without.
        shutil.copytree(first / "checkpoint-4", tmp_path / "other" / "checkpoint-4")
    run_small(small_shards, tmp_path, **settings)
    assert (logs / "earlier-1" / "metrics.jsonl").read_text() == log
    assert count_events(logs / "earlier-1") == losses
    assert describe_steps(logs / "metrics.jsonl") == [5]
    assert count_events(logs).keys() == {5}
    if way == "continued":  # The first one's turn again.
        run_small(small_shards, tmp_path, training__num_training_steps=9)
        assert describe_steps(logs / "metrics.jsonl") == [9]
        assert describe_steps(logs / "earlier-2" / "metrics.jsonl") == [5]


def test_a_log_that_does_not_say_whose_it_is_is_kept_whole(
    small_shards: Shards, tmp_path: Path
) -> None:
    """Logs of before runs signed theirs: it goes on, and of what it drops a copy stays."""
    run_small(small_shards, tmp_path, training__save_steps=5)
    logs = tmp_path / "logs"
    log = (logs / "metrics.jsonl").read_text()
    (logs / "run-folder").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-8")
    run_small(small_shards, tmp_path, training__save_steps=5)
    assert (logs / "earlier-1" / "metrics.jsonl").read_text() == log
    assert describe_steps(logs / "metrics.jsonl") == list(range(1, 9))
    assert count_events(logs).keys() == set(range(1, 9))


@pytest.mark.parametrize("fault", ["gone", "full"])
def test_a_log_that_cannot_be_written_resumes_when_it_can(
    small_shards: Shards,
    tmp_path: Path,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs, away = tmp_path / "logs", tmp_path / "away"
    place = logs if fault == "gone" else logs / "metrics.jsonl"

    def disturb(step: int) -> None:
        if step == 3:
            os.rename(place, away)
            place.symlink_to("/dev/null" if fault == "gone" else "/dev/full")
        if step == 6:
            place.unlink()
            os.rename(away, place)

    with each_step(monkeypatch, disturb):
        assert run_small(small_shards, tmp_path).step == 8
    assert describe_steps(logs / "metrics.jsonl") == list(range(1, 9))
    assert count_events(logs) == pytest.approx(read_metrics(tmp_path), rel=1e-6)
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if f"{logs}: cannot be logged to (" in line]) == 1
    assert said.count(f"{logs}: the log is written again") == 1


WANDB = """
def init(**options):
    {init}
    return Logged()

class Logged:
    step = 0
    def define_metric(self, *names, **options):
        pass
    def log(self, *values, **options):
        {log}
    def finish(self):
        {finish}
"""


@pytest.mark.parametrize("fault", ["init", "log", "finish", "import"])
def test_a_fault_of_wandb_ends_no_run(
    small_shards: Shards,
    tmp_path: Path,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = dict.fromkeys(("init", "log", "finish"), "pass")
    raising = "raise RuntimeError('no\\n network')"
    (tmp_path / "wandb").mkdir()
    source = raising if fault == "import" else WANDB.format(**parts | {fault: raising})
    (tmp_path / "wandb" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert run_small(small_shards, tmp_path).step == 8
    sys.modules.pop("wandb", None)  # Not the next tests' as well.
    assert sorted(read_metrics(tmp_path)) == list(range(1, 9))
    said = capsys.readouterr().err.splitlines()
    assert said.count("W&B: cannot be logged to (no network); the run goes on") == 1


def close_reader() -> None:
    """Let standard error be a pipe that nobody reads, as after `2>&1 | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    for descriptor in (1, 2):
        os.dup2(writing, descriptor)


def fill_disk() -> None:
    """Let standard error be a file on a full disk."""
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(full, descriptor)


@pytest.mark.parametrize("setup", [close_reader, fill_disk])
def test_a_run_outlives_its_standard_error(
    small_shards: Shards, tmp_path: Path, setup: Callable[[], None]
) -> None:
    done = run_forked(["train", *make_overrides(small_shards, tmp_path)], setup=setup)
    assert done.returncode == 0
    assert sorted(read_metrics(tmp_path)) == list(range(1, 9))


# A full disk at a checkpoint


@contextmanager
def small_files() -> Iterator[Callable[[bool], None]]:
    """A limit on the size of files, as a full disk; it is set and lifted with what is given."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def set_limit(is_full: bool) -> None:
        limit = 1_000_000 if is_full else limits[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))

    try:
        yield set_limit
    finally:
        set_limit(False)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(("full_from", "full_to"), [(4, 6), (8, 9)])
def test_a_checkpoint_that_finds_no_disk_is_tried_again(
    small_shards: Shards,
    tmp_path: Path,
    full_from: int,
    full_to: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At the next save; or after the last step, and its evaluation, once more."""
    evaluate = train.loop.evaluate
    with small_files() as set_full:

        def free_and_evaluate(*arguments: Any, **options: Any) -> list[float] | None:
            set_full(False)
            return evaluate(*arguments, **options)

        monkeypatch.setattr(train.loop, "evaluate", free_and_evaluate)
        with each_step(monkeypatch, lambda step: set_full(full_from <= step < full_to)):
            outcome = run_small(small_shards, tmp_path, training__save_steps=2)
    assert outcome.checkpoint == tmp_path / "checkpoints" / "checkpoint-8"
    saved = [2, 4, 6, 8] if full_from == 8 else [2, 6, 8]
    assert list_names(tmp_path / "checkpoints") == [f"checkpoint-{step}" for step in saved]
    said = capsys.readouterr().err
    assert said.count(f"checkpoint-{full_from} could not be written (") == 1
    assert "are intact; free some disk, it is tried again" in said


# Signals


def run_until(config_folder: Path, shards: Shards, stop: StopFlag, **settings: object) -> Outcome:
    return train.loop.train(make_config(shards, config_folder, **settings), stop)


def test_a_signal_during_a_save_makes_no_other_one(
    small_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopFlag()
    save = Run.save

    def signal_and_save(run: Run) -> None:
        stop.take(signal.SIGTERM)
        save(run)

    monkeypatch.setattr(Run, "save", signal_and_save)
    outcome = run_until(tmp_path, small_shards, stop, training__save_steps=3)
    assert (outcome.step, outcome.signal_number) == (3, signal.SIGTERM)
    assert list_names(tmp_path / "checkpoints") == ["checkpoint-3"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_before_the_first_step_is_done_a_signal_ends_the_run_at_once(
    small_shards: Shards, tmp_path: Path, number: signal.Signals
) -> None:
    """A step of many thousand micro-steps."""
    settings = {"training__gradient_accumulation_steps": 500_000}
    process = Forked(["train", *make_overrides(small_shards, tmp_path, **settings)])
    deadline = time.monotonic() + 200
    while not (tmp_path / "logs" / "run-folder").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.endswith("\nstopped before the first step; the same command starts again\n")
    assert list_checkpoints(tmp_path / "checkpoints") == []


# A run that is in a long step, as far as signals are concerned.
LISTENING = """
import time
from train.ranks.stop import listen_for_stop
with listen_for_stop() as stop:
    stop.has_progress = True
    print("listening", flush=True)
    while {condition}:
        time.sleep(0.05)
    print("stopping by", stop.signal_number, flush=True)
"""
FOREVER = LISTENING.format(condition="True")
UNTIL_STOPPED = LISTENING.format(condition="not stop.signal_number")


def start_python(script: str, **variables: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    )
    assert process.stdout
    assert process.stdout.readline() == "listening\n"
    return process


def test_a_second_ctrl_c_ends_the_run_at_once() -> None:
    process = start_python(FOREVER)
    for pause in (0.0, 0.02, 0.7):  # The second is the first one, handed on by torchrun.
        time.sleep(pause)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "stopped at once; the same command resumes from the last checkpoint\n"


def test_a_second_sigterm_does_not_end_a_save() -> None:
    process = start_python(FOREVER)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.7)
    assert process.poll() is None
    process.kill()
    process.communicate()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_each_signal_stops_a_run(name: str) -> None:
    process = start_python(UNTIL_STOPPED)
    process.send_signal(getattr(signal, name))
    out, errors = process.communicate(timeout=60)
    assert (out, errors) == (f"stopping by {getattr(signal, name).value}\n", "")


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    script = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + UNTIL_STOPPED
    process = start_python(script)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "stopping by 15\n"


PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.parametrize("has_torchrun", [True, False])
def test_a_rank_whose_torchrun_was_killed_ends(has_torchrun: bool) -> None:
    """A run that nobody but a shell started goes on without it."""
    variables = {"TORCHELASTIC_RUN_ID": "none"} if has_torchrun else {}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, UNTIL_STOPPED],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
        start_new_session=True,
    )
    assert parent.stdout
    assert parent.stdout.readline() == "listening\n"
    parent.kill()
    parent.wait()
    time.sleep(1.5)
    if not has_torchrun:
        os.killpg(parent.pid, signal.SIGUSR1)
    number = 15 if has_torchrun else signal.SIGUSR1.value
    never = Timer(120, os.killpg, (parent.pid, signal.SIGKILL))
    never.start()
    assert parent.stdout.read() == f"stopping by {number}\n"
    never.cancel()
    parent.stdout.close()
