"""Runs as processes of their own: real ones, whose ranks live no longer than the command.

They are started as srun starts them, without torchrun, whose ranks do not die with it.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

Rank = subprocess.Popen[bytes]

# What a run says at its end, if it fails; the rest is the user's to read in the file.
LAST_WORDS = 2000


def train_command(
    name: str | None, overrides: Sequence[str], own: Mapping[str, object]
) -> list[str]:
    """The training command: the user's words, and then what is to be otherwise."""
    words = [sys.executable, "-m", "train", *(["--config", name] if name else [])]
    return [*words, *overrides, *(f"{key}={value}" for key, value in own.items())]


def run_to_end(command: Sequence[str], folder: Path, num_ranks: int) -> None:
    """Run a command to its end; ValueError, with its last words, if it fails."""
    with started(command, folder, num_ranks) as ranks:
        codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise ValueError(describe_failure(folder, next(filter(None, codes))))


@contextmanager
def started(command: Sequence[str], folder: Path, num_ranks: int) -> Iterator[list[Rank]]:
    """The ranks of a run in `folder`, which end with us; what they say goes to a file beside it."""
    # No module of the user's working folder may stand in for one of ours, and no run is logged
    # elsewhere that is made only to be killed.
    environment = os.environ | {"PYTHONSAFEPATH": "1", "WANDB_MODE": "disabled"}
    environment.pop("WANDB_API_KEY", None)
    with open(words_path(folder), "ab") as words:
        # Each leads a session, with what it starts to compile.
        ranks = [
            subprocess.Popen(
                command, stdout=words, stderr=words, env=environment | own, start_new_session=True
            )
            for own in number_ranks(num_ranks)
        ]
    try:
        yield ranks
    finally:
        kill(ranks)


def number_ranks(count: int) -> list[dict[str, str]]:
    """The variables by which each rank knows its place; none where there is one rank."""
    if count == 1:
        return [{}]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank)} | common for rank in range(count)]


def kill(ranks: list[Rank]) -> None:
    """Kill all that live, at once."""
    for rank in ranks:
        if rank.poll() is None:
            os.killpg(rank.pid, signal.SIGKILL)
    for rank in ranks:
        rank.wait()


def words_path(folder: Path) -> Path:
    """Where a run's own output goes."""
    return folder.with_name(f"{folder.name}.txt")


def describe_failure(folder: Path, code: int) -> str:
    """What a run said that failed."""
    path = words_path(folder)
    said = path.read_text(encoding="utf-8", errors="replace")[-LAST_WORDS:]
    own = [line for line in said.splitlines() if line.startswith("velocity: ")]
    reason = own[-1].removeprefix("velocity: ") if own else "see what it said"
    return f"the run failed with exit code {code}: {reason} ({path})"
