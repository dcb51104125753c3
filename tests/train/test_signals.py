"""Signals in each phase of a run, on one rank and on two; then the same command goes on."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train.checkpoints.saver
import train.loop
import train.run
import train.take_step
from model.checkpoints.seal import list_checkpoints, verify
from model.transformer import Transformer
from tests.runs import make_overrides, read_metrics, run_small
from tests.servers.forked import start_ranks

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]
# What a run is in the middle of when the signal comes, and from which step on.
PHASES = {
    "start": (train.run, "build_model", 0),
    "resume": (train.run, "restore", 0),
    "compile": (Transformer, "compile_blocks", 0),
    "step": (train.take_step, "apply_gradients", 3),
    "save": (train.checkpoints.saver, "save_checkpoint", 1),
    "evaluate": (train.loop, "evaluate", 1),
    "end": (train.loop, "describe_step", 6),
}
# Before the first step is done there is nothing to save.
EARLY = {"start", "resume", "compile"}


def signal_within(phase: str) -> None:
    """Have this rank get the signal in the middle of the phase, at its n-th time."""
    number = int(os.environ["TEST_SIGNAL"])
    if phase == "compile":
        Transformer.compile_blocks = compile_slowly(number)  # type: ignore[method-assign]
        return
    module, name, first = PHASES[phase]
    action, calls = getattr(module, name), []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == max(first, 1):
            os.kill(os.getpid(), number)
            time.sleep(0.5 if phase not in EARLY else 1000)
        return action(*arguments, **options)

    setattr(module, name, interrupted)


def compile_slowly(number: int) -> Callable[..., None]:
    """torch.compile, and a compiler that does not come to an end."""

    def compile_graph(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., Any]:
        os.kill(os.getpid(), number)
        time.sleep(1000)
        return graph.forward

    compile_blocks: Any = Transformer.compile_blocks
    return lambda model, **options: compile_blocks(model, compile_graph, **options)


def set_signal() -> None:
    """On one rank, or on the one that TEST_RANK names."""
    if os.environ.get("RANK", "0") == os.environ["TEST_RANK"]:
        signal_within(os.environ["TEST_PHASE"])


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_each_phase_stops_the_run_where_it_goes_on(
    small_shards: Path,
    tmp_path: Path,
    phase: str,
    ranks: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The signals one after another, each to the run that the one before has left."""
    settings: dict[str, object] = {"training__num_training_steps": 6, "training__eval_steps": 3}
    settings |= {"training__save_steps": 3, "training__compile": phase == "compile"}
    folder = tmp_path / "run"
    monkeypatch.setenv("TEST_PHASE", phase)
    # The first rank alone saves and reports.
    monkeypatch.setenv("TEST_RANK", "0" if phase in ("save", "end") else str(ranks - 1))
    # With two ranks one of the signals is enough: they share all that comes after the first one.
    for number in SIGNALS if ranks == 1 else SIGNALS[:1]:
        out = folder / number.name
        overrides = make_overrides(small_shards, out, **settings)
        if phase == "resume":
            run_small(small_shards, out, **settings | {"training__num_training_steps": 2})
        before = [path.name for path in list_checkpoints(out / "checkpoints")]
        monkeypatch.setenv("TEST_SIGNAL", str(int(number)))
        started = start_ranks(ranks, overrides, set_signal)
        said = [process.communicate(timeout=300)[1] for process in started]
        assert [process.returncode for process in started] == [128 + number] * ranks, said
        after = [path.name for path in list_checkpoints(out / "checkpoints")]
        if phase in EARLY:
            assert said[0].count("stopped before the first step; the same command starts") == 1
            assert after == before
        else:
            assert said[0].count("; the same command resumes from ") == 1
            verify(out / "checkpoints" / after[0])
        run_small(small_shards, out, **settings | {"training__compile": False})
        assert sorted(read_metrics(out)) == list(range(1, 7))
