"""torchrun's restarts and its elastic runs: real torchrun processes, killed and started again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from model.checkpoints.seal import list_checkpoints
from tests.runs import make_overrides, read_metrics

Agent = subprocess.Popen[bytes]


def start_torchrun(options: list[str], overrides: list[str], log: Path) -> Agent:
    """A torchrun, and what it and its ranks say in a file."""
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "train", *overrides]
    with open(log, "ab") as stream:
        # As docs/clusters.md says: torch 2.13's shared store does not outlive a machine.
        variables = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        return subprocess.Popen(command, stderr=stream, start_new_session=True, env=variables)


def list_ranks(agent: Agent) -> list[int]:
    """The processes that a torchrun has started."""
    lists = Path(f"/proc/{agent.pid}/task").glob("*/children")
    return [int(child) for children in lists for child in children.read_text().split()]


def wait_for(is_there: Callable[[], bool], *agents: Agent, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not is_there():
        assert all(agent.poll() is None for agent in agents), "torchrun has ended"
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


def test_a_mistake_ends_torchrun_and_is_not_made_again(small_shards: Path, tmp_path: Path) -> None:
    options = ["--standalone", "--nproc_per_node", "2", "--max-restarts", "5"]
    overrides = make_overrides(small_shards, tmp_path, model__vocab_size=77)
    agent = start_torchrun(options, overrides, tmp_path / "log")
    assert agent.wait(120) != 0
    said = (tmp_path / "log").read_text()
    assert said.count("its tokenizer has 50257 ids, model.vocab_size is 77") == 1
    assert said.count("got signal: 15") > 0


def test_a_killed_rank_is_started_again_and_the_run_goes_on(
    small_shards: Path, tmp_path: Path
) -> None:
    options = ["--standalone", "--nproc_per_node", "2", "--max-restarts", "1"]
    settings = {"training__num_training_steps": 30, "training__save_steps": 2}
    settings["training__gradient_accumulation_steps"] = 50
    overrides = make_overrides(small_shards, tmp_path, **settings)
    agent = start_torchrun(options, overrides, tmp_path / "log")
    wait_for(lambda: bool(list_checkpoints(tmp_path / "checkpoints")), agent)
    os.kill(list_ranks(agent)[1], signal.SIGKILL)
    assert agent.wait(240) == 0
    said = (tmp_path / "log").read_text()
    assert said.count("ended without a word: killed, perhaps for want of memory") == 1
    assert said.count(f"resuming from {tmp_path}/checkpoints/checkpoint-") == 1
    assert sorted(read_metrics(tmp_path)) == list(range(1, 31))
