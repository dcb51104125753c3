"""One rank of several fails: it says why at once, and all others end within seconds."""

import os
import platform
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from threading import Thread

import pytest
from torch._C._distributed_c10d import TCPStore

import train.loop
import train.ranks.alarm
import train.ranks.meeting
import train.ranks.watch
from model.checkpoints.seal import list_checkpoints
from tests.runs import make_overrides
from tests.servers.forked import Forked, run_forked, start_ranks
from train.batches import Batches
from train.ranks.meeting import meet
from train.ranks.watch import Watch
from train.run import Run

HOST = platform.node()
# How long after a fault all processes may still be there, on a busy machine.
SECONDS = 90.0


def at_step(step: int, do: Callable[[], None], rank: int = 1) -> None:
    """Have one rank do something before it takes a step."""
    take_step = train.loop.take_step

    def do_and_take(run: Run) -> tuple[float, float]:
        if run.rank.rank == rank and run.step == step - 1:
            do()
        return take_step(run)

    train.loop.take_step = do_and_take


def hang(*_: object) -> None:
    """Wait for what never comes."""
    time.sleep(1000)


def fail() -> None:
    raise OSError("the disk is gone")


def fail_with_mistake() -> None:
    raise ValueError("the settings are wrong")


def set_failing() -> None:
    """A step that fails, and a cleanup that would wait for ever."""
    Batches.close = hang  # type: ignore[method-assign]
    at_step(3, fail)


def set_mistaken() -> None:
    at_step(3, fail_with_mistake)


def set_patient() -> None:
    """Who tells why the run ends waits as long as it takes until the others have read it."""
    train.ranks.alarm.READING_SECONDS = 1000.0


def set_killed() -> None:
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL))


def set_killed_among_patient() -> None:
    """None must wait for the one that is gone."""
    set_patient()
    set_killed()


def set_killed_elsewhere() -> None:
    """As if each rank had a machine of its own; it ends before it has given any sign of life."""
    train.ranks.watch.identify_machine = lambda: ""
    take_round = Watch.take_round
    Watch.take_round = lambda watch: None if watch.rank == 1 else take_round(watch)  # type: ignore[method-assign]
    set_killed()


def set_lost() -> None:
    """A machine that is lost; its connections stay open."""
    train.ranks.watch.identify_machine = lambda: ""
    train.ranks.watch.Limits.silence = 4.0
    train.ranks.watch.Limits.__init__.__defaults__ = (0.5, 4.0, 5.0, 5.0)
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def set_hanging() -> None:
    at_step(3, hang)


def set_hanging_first_step() -> None:
    at_step(1, hang)


def wait_for(is_so: Callable[[], bool], ranks: list[Forked]) -> None:
    """Wait until a run has come to something."""
    deadline = time.monotonic() + 200
    while not is_so():
        assert all(rank.poll() is None for rank in ranks), [rank.communicate() for rank in ranks]
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


def end_all(ranks: list[Forked]) -> list[list[str]]:
    """Wait for the end of all ranks; what each said of it."""
    deadline = time.monotonic() + 200
    while all(rank.poll() is None for rank in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    deadline = time.monotonic() + SECONDS
    said = [rank.communicate(deadline - time.monotonic())[1] for rank in ranks]
    return [[line for line in text.splitlines() if "velocity: " in line] for text in said]


def describe(ranks: list[Forked]) -> list[int]:
    return [rank.returncode for rank in ranks]


@pytest.mark.parametrize(
    ("setup", "code", "message"),
    [(set_failing, 1, "the disk is gone"), (set_mistaken, 78, "the settings are wrong")],
)
def test_an_error_on_one_rank_ends_all_with_who_and_why(
    tiny_shards: Path, tmp_path: Path, setup: Callable[[], None], code: int, message: str
) -> None:
    ranks = start_ranks(3, make_overrides(tiny_shards, tmp_path), setup)
    said = end_all(ranks)
    assert describe(ranks) == [code] * 3
    # The failed one, and the first, whose standard error is another file here; not all others.
    line = f"velocity: rank 1 ({HOST}): {message}"
    assert said == [[line], [line], []]


def test_a_rank_that_is_killed_ends_all(tiny_shards: Path, tmp_path: Path) -> None:
    ranks = start_ranks(3, make_overrides(tiny_shards, tmp_path), set_killed_among_patient)
    first, killed, third = end_all(ranks)
    assert describe(ranks) == [1, -9, 1]
    line = f"velocity: rank 1 ({HOST}): ended without a word: killed, perhaps for want of memory"
    assert (first, killed) == ([line], [])
    assert third in ([], [line])


def test_a_rank_that_is_killed_on_another_machine_is_named(
    tiny_shards: Path, tmp_path: Path
) -> None:
    ranks = start_ranks(2, make_overrides(tiny_shards, tmp_path), set_killed_elsewhere)
    [line], killed = end_all(ranks)
    assert describe(ranks) == [1, -9]
    start = f"velocity: rank 0 ({HOST}): the connection to rank 1 is lost, which gives no sign of"
    assert line.startswith(start), line
    assert not killed


def test_a_machine_that_is_lost_is_noticed(tiny_shards: Path, tmp_path: Path) -> None:
    ranks = start_ranks(2, make_overrides(tiny_shards, tmp_path), set_lost)
    try:
        _, errors = ranks[0].communicate()
    finally:
        ranks[1].kill()
    assert ranks[0].returncode == 1
    line = f"velocity: rank 1 ({HOST}): gave no sign of life for 4 s: killed, or its machine is"
    assert line in errors


@pytest.mark.parametrize("setup", [set_hanging, set_hanging_first_step])
def test_ranks_that_wait_for_ever_say_where(
    tiny_shards: Path, tmp_path: Path, setup: Callable[[], None]
) -> None:
    is_first = setup == set_hanging_first_step
    overrides = make_overrides(
        tiny_shards,
        tmp_path,
        distributed__step_timeout_seconds=10**6 if is_first else 3,
        distributed__start_timeout_seconds=3 if is_first else 10**6,
    )
    ranks = start_ranks(2, overrides, setup)
    said = end_all(ranks)
    assert describe(ranks) == [1, 1]
    [line] = {line.partition("): ")[2] for lines in said for line in lines}
    step = 1 if is_first else 3
    assert line.startswith(f"nothing has moved for 3 s: rank 0 in step {step} at train/")
    assert f"; rank 1 in step {step} at tests/train/test_ending.py:" in line
    assert "(hang); their last collectives: " in line
    assert '"profiling_name":"gloo:' in (tmp_path / "logs" / "stuck-rank-0.json").read_text()


def test_a_stop_while_a_rank_is_gone_waits_for_nothing(tiny_shards: Path, tmp_path: Path) -> None:
    """As torchrun sends it to the others when one has died."""
    overrides = make_overrides(tiny_shards, tmp_path, training__num_training_steps=10**6)
    ranks = start_ranks(2, overrides)
    log = tmp_path / "logs" / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 3, ranks)
    ranks[1].kill()
    ranks[0].send_signal(signal.SIGTERM)
    [line], _ = end_all(ranks)
    assert ranks[0].returncode == 1
    assert (
        line
        == f"velocity: rank 1 ({HOST}): ended without a word: killed, perhaps for want of memory"
    )
    assert list_checkpoints(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("stopped", [(0,), (1,), (0, 1)])
def test_a_stop_before_the_first_step_ends_all(
    tiny_shards: Path, tmp_path: Path, stopped: tuple[int, ...]
) -> None:
    settings = {"training__gradient_accumulation_steps": 500_000}
    ranks = start_ranks(2, make_overrides(tiny_shards, tmp_path, **settings), set_patient)
    wait_for((tmp_path / "logs" / "run-folder").exists, ranks)
    for rank in stopped:
        ranks[rank].send_signal(signal.SIGTERM)
    said = [rank.communicate(SECONDS)[1] for rank in ranks]
    assert describe(ranks) == [143, 143]
    assert said[0].count("stopped before the first step; the same command starts again") == 1
    assert "stopped" not in said[1]


def see_what_was_said(self: Batches) -> None:
    """In place of a cleanup: note how much had been said before."""
    Path("said").write_text(str(os.fstat(2).st_size))


def set_failing_alone() -> None:
    Batches.close = see_what_was_said  # type: ignore[method-assign]
    at_step(3, fail, rank=0)


def test_an_error_is_told_before_anything_is_cleaned_up(tiny_shards: Path, tmp_path: Path) -> None:
    words = ["train", *make_overrides(tiny_shards, tmp_path)]
    done = run_forked(words, cwd=tmp_path, setup=set_failing_alone)
    assert done.returncode == 1
    assert done.stderr.endswith("velocity: the disk is gone\n")
    assert (tmp_path / "said").read_text() == str(len(done.stderr))


def test_ranks_meet_anew_in_a_store_that_earlier_ones_have_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As torchrun's, which stays over restarts."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    for word in (b"first", b"second"):
        found = {}

        def come(rank: int, word: bytes = word, found: dict[int, bytes] = found) -> None:
            store = meet(rank, 3)
            if rank == 0:
                assert not store.check(["word"])
                store.set("word", word.decode())
            found[rank] = store.get("word")

        threads = [Thread(target=come, args=(rank,)) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert found == {0: word, 1: word, 2: word}


def test_the_first_rank_says_who_did_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.ranks.meeting, "MEETING_SECONDS", 1.0)
    server = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=60))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    with pytest.raises(TimeoutError, match="ranks 1-3 of 4 did not come within 1 s; see what"):
        meet(0, 4)
    with pytest.raises(TimeoutError, match="did not meet within 1 s; the first one says which"):
        meet(2, 4)
