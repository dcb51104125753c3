"""torchrun's restarts and its elastic runs: real torchrun processes, killed and started again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from model.checkpoints.seal import list_checkpoints
from tests.runs import make_overrides, read_metrics
from tests.servers.ports import find_port
from train.checkpoints.position import read_position

Agent = subprocess.Popen[bytes]
PER_STEP = 8  # Samples.


def start_torchrun(options: list[str], overrides: list[str], log: Path) -> Agent:
    """A torchrun of `-m train`, and what it and its ranks say in a file."""
    return start_torchrun_of(["-m", "train", *overrides], options, log)


def start_torchrun_of(program: list[str], options: list[str], log: Path) -> Agent:
    """A torchrun, and what it and its ranks say in a file."""
    command = [sys.executable, "-m", "torch.distributed.run", *options, *program]
    with open(log, "ab") as stream:
        # As docs/clusters.md says: torch 2.13's shared store does not outlive a machine.
        variables = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        return subprocess.Popen(command, stderr=stream, start_new_session=True, env=variables)


def list_ranks(agent: Agent) -> list[int]:
    """The processes that a torchrun has started."""
    lists = Path(f"/proc/{agent.pid}/task").glob("*/children")
    return [int(child) for children in lists for child in children.read_text().split()]


def wait_for(is_there: Callable[[], bool], *agents: Agent, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not is_there():
        assert all(agent.poll() is None for agent in agents), "torchrun has ended"
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


def test_a_mistake_ends_torchrun_and_is_not_made_again(tiny_shards: Path, tmp_path: Path) -> None:
    options = ["--standalone", "--nproc_per_node", "2", "--max-restarts", "5"]
    overrides = make_overrides(tiny_shards, tmp_path, model__vocab_size=77)
    agent = start_torchrun(options, overrides, tmp_path / "log")
    assert agent.wait(400) != 0
    said = (tmp_path / "log").read_text()
    assert said.count("its tokenizer has 300 ids, model.vocab_size is 77") == 1
    assert said.count("got signal: 15") > 0


def test_a_mistake_of_another_rank_than_the_first_is_not_made_again(tmp_path: Path) -> None:
    """The first one waits for it meanwhile, and knows nothing of it."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, time\n"
        "from train.ranks import exits\n"
        "print('started', os.environ['RANK'], file=sys.stderr)\n"
        "exits.TORCHRUN_SECONDS = 1.0\n"
        "if os.environ['RANK'] == '1':\n"
        "    exits.leave(exits.DO_NOT_RESTART)\n"
        "time.sleep(200)\n"
    )
    options = ["--standalone", "--nproc_per_node", "2", "--max-restarts", "5"]
    agent = start_torchrun_of([str(program)], options, tmp_path / "log")
    assert agent.wait(400) != 0
    said = (tmp_path / "log").read_text()
    assert [said.count(f"started {rank}") for rank in range(2)] == [1, 1]


def test_a_killed_rank_is_started_again_and_the_run_goes_on(
    tiny_shards: Path, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal\n"
        "import train.loop\n"
        "from train.__main__ import main\n"
        "take_step = train.loop.take_step\n"
        "def take_or_die(run):\n"
        "    if run.step == 5 and run.rank.rank == 1:\n"
        "        if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return take_step(run)\n"
        "train.loop.take_step = take_or_die\n"
        "main()\n"
    )
    options = ["--standalone", "--nproc_per_node", "2", "--max-restarts", "1"]
    settings = {"training__num_training_steps": 8, "training__save_steps": 2}
    overrides = make_overrides(tiny_shards, tmp_path, **settings)
    agent = start_torchrun_of([str(program), *overrides], options, tmp_path / "log")
    assert agent.wait(400) == 0
    said = (tmp_path / "log").read_text()
    assert said.count("ended without a word: killed, perhaps for want of memory") == 1
    assert said.count(f"resuming from {tmp_path}/checkpoints/checkpoint-") == 1
    assert sorted(read_metrics(tmp_path)) == list(range(1, 9))


def test_an_elastic_run_loses_a_machine_and_gets_it_back(tiny_shards: Path, tmp_path: Path) -> None:
    """Two torchruns as two machines; each step has the samples that any number of ranks gives."""
    options = ["--nnodes", "1:2", "--nproc_per_node", "1", "--max-restarts", "3"]
    options += ["--rdzv-backend", "c10d", "--rdzv-id", "run", "--shutdown-timeout", "60"]
    options += ["--rdzv-endpoint", f"127.0.0.1:{find_port()}"]
    settings = {
        "training__num_training_steps": 10**6,
        "training__save_steps": 5,
        "training__global_batch_tokens": PER_STEP * 16,
        "training__gradient_accumulation_steps": "auto",
    }
    overrides = make_overrides(tiny_shards, tmp_path, **settings)
    folder, log = tmp_path / "checkpoints", tmp_path / "logs" / "metrics.jsonl"

    def start(name: str, is_host: int) -> Agent:
        own = ["--rdzv-conf", f"last_call_timeout=2,is_host={is_host}"]
        return start_torchrun([*options, *own], overrides, tmp_path / name)

    agents = [start("first", 1), start("other", 0)]
    try:
        wait_for(lambda: count_ranks(agents[0]) == 2 and log.exists(), *agents)
        wait_for(lambda: bool(list_checkpoints(folder)), *agents)
        for process in (agents[1].pid, *list_ranks(agents[1])):
            os.kill(process, signal.SIGKILL)
        agents.pop().wait()
        wait_for(lambda: count_ranks(agents[0]) == 1, *agents)
        wait_for_steps(log, *agents)
        agents.append(start("other", 0))
        wait_for(lambda: count_ranks(agents[0]) == 2, *agents)
        wait_for_steps(log, *agents)
    finally:
        for agent in agents:
            agent.send_signal(signal.SIGTERM)
        for agent in agents:
            agent.wait(200)
    samples = read_metrics(tmp_path, "samples")
    assert samples == {step: step * PER_STEP for step in range(1, len(samples) + 1)}
    newest = read_position(list_checkpoints(folder)[0])
    assert newest.step == len(samples)
    # From which step and sample on, how many samples a step: one entry, whatever the ranks were.
    assert newest.history == read_position(list_checkpoints(folder)[-1]).history
    assert len(newest.history) == 1


def count_ranks(agent: Agent) -> int:
    """How many ranks the run has by which a torchrun has started its own; 0 = it starts none."""
    for child in list_ranks(agent):
        with suppress(OSError):
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            found = [int(v[11:]) for v in variables if v.startswith(b"WORLD_SIZE=")]
            return found[0] if found else 0
    return 0


def wait_for_steps(log: Path, *agents: Agent) -> None:
    """Wait until some more steps are logged."""
    size = log.stat().st_size
    wait_for(lambda: log.stat().st_size > size + 1000, *agents)
