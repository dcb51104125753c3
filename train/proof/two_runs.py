"""`velocity verify-resume`: a run to its end, and one that is killed and started again, compared.

Both are real runs with the run's own settings, but so many steps and folders of their own. Their
ranks are started as srun starts them, without torchrun, whose ranks do not die with it. The second
run gets SIGKILL behind a checkpoint, all ranks at once.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model.checkpoints.seal import list_checkpoints
from shards.disk.folders import make_folder
from shards.disk.space import check_space
from shards.mixture.sets import open_sets
from shards.screen.lines import Say
from train.config import Config
from train.proof.differences import find_differences, find_first_unlike, read_losses
from train.settings import load_config
from train.start.ids import fit_model
from train.step.schedule import default_cycle_steps

Rank = subprocess.Popen[bytes]

LOOK_SECONDS = 0.002
# Both runs keep the checkpoint in the middle and the last one.
NUM_CHECKPOINTS = 4
# What a run says at its end, if it fails; the rest is the user's to read in the file.
LAST_WORDS = 2000


@dataclass(frozen=True)
class Proof:
    """What is run, and where."""

    name: str | None
    overrides: Sequence[str]
    steps: int
    ranks: int
    folder: Path

    @property
    def middle(self) -> int:
        """The step of the checkpoint after which the second run is killed."""
        return -(-self.steps // 2)

    def command(self, config: Config, folder: Path) -> list[str]:
        """The training command, in a folder of its own."""
        # The schedule stays that of the whole run.
        cycle = config.training.cycle_steps or default_cycle_steps(config.training)
        own = {
            "training.num_training_steps": self.steps,
            "training.cycle_steps": cycle,
            "training.save_steps": self.middle,
            "training.save_total_limit": 2,
            "training.logging_steps": 1,
            "infrastructure.output_dir": folder,
            "infrastructure.logging_dir": "null",
            "infrastructure.resume_from_checkpoint": "auto",
        }
        words = [sys.executable, "-m", "train", *(["--config", self.name] if self.name else [])]
        return [*words, *self.overrides, *(f"{key}={value}" for key, value in own.items())]


def verify_resume(proof: Proof, say: Say) -> list[str]:
    """Make the proof; returns what was found, line by line.

    Raises ValueError, with what differs, if the two runs do not end alike.
    """
    if proof.steps < 4:
        raise ValueError(f"--steps is {proof.steps}; expected at least 4")
    if proof.ranks < 1:
        raise ValueError(f"--ranks is {proof.ranks}; expected at least 1")
    config = load_config(proof.name, proof.overrides)
    # Before anything is written.
    sets = open_sets(config.data.entries, config.data.max_seq_length, config.infrastructure.seed)
    config = fit_model(config, sets.first.folder, sets.first.manifest)
    if proof.folder.exists() and any(proof.folder.iterdir()):
        raise ValueError(f"{proof.folder}: is not empty; choose another --out")
    make_folder(proof.folder)
    size = NUM_CHECKPOINTS * config.checkpoint_bytes
    say(check_space(proof.folder, size, "choose another --out", "for four checkpoints"))
    straight, killed = proof.folder / "straight", proof.folder / "killed"

    say(f"a run of {proof.steps:,} steps, to its end")
    run_to_end(proof, config, straight)
    say(f"the same, killed (SIGKILL) after the checkpoint of step {proof.middle:,}")
    last = kill_after(proof, config, killed)
    say(f"killed after step {last:,}; the same command again")
    run_to_end(proof, config, killed)
    return judge(proof, straight, killed, last)


def judge(proof: Proof, straight: Path, killed: Path, last: int) -> list[str]:
    """What the two runs left, compared; ValueError if it is not the same."""
    logs = [read_losses(folder / "logs") for folder in (straight, killed)]
    first_unlike = find_first_unlike(*logs)
    ends = [folder / f"checkpoint-{proof.steps}" for folder in (straight, killed)]
    lines = find_differences(*ends)
    if first_unlike is None and not lines:
        return [
            f"the same, bit for bit, after {proof.steps:,} steps: weights, Adam's moments, "
            "training state, and the loss of every step",
            f"(killed after step {last:,}, resumed from step {proof.middle:,}, ranks: "
            f"{proof.ranks})",
        ]
    middles = [folder / f"checkpoint-{proof.middle}" for folder in (straight, killed)]
    early = find_differences(*middles)
    where = (
        f"they differ before the kill already ({early[0]} at step {proof.middle:,}), so it is not "
        "resuming that differs: the kernels of this machine do not give the same bits twice"
        if early
        else f"they were the same, bit for bit, at step {proof.middle:,}"
    )
    loss = "none" if first_unlike is None else f"from step {first_unlike:,} on"
    raise ValueError(
        f"the two runs do not end alike: {'; '.join(lines) or 'the checkpoints are the same'}; "
        f"losses that differ: {loss}; {where}. Both are kept in {proof.folder}"
    )


def run_to_end(proof: Proof, config: Config, folder: Path) -> None:
    """Run to the end; ValueError, with its last words, if it fails."""
    with started(proof, config, folder) as ranks:
        codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise ValueError(describe_failure(folder, next(filter(None, codes))))


def kill_after(proof: Proof, config: Config, folder: Path) -> int:
    """Kill a run once it has taken a step after its checkpoint; its last logged step."""
    with started(proof, config, folder) as ranks:
        while any(rank.poll() is None for rank in ranks):
            if has_passed(folder, proof.middle):
                kill(ranks)
                return read_losses(folder / "logs")[-1][0]
            time.sleep(LOOK_SECONDS)
    if codes := [*filter(None, (rank.returncode for rank in ranks))]:
        raise ValueError(describe_failure(folder, codes[0]))
    raise ValueError("the run was over before it could be killed; give it more --steps")


def has_passed(folder: Path, step: int) -> bool:
    """Whether a run has a whole checkpoint of a step, and has logged one after it."""
    losses = read_losses(folder / "logs")
    if not losses or losses[-1][0] <= step:
        return False
    return folder / f"checkpoint-{step}" in list_checkpoints(folder)


@contextmanager
def started(proof: Proof, config: Config, folder: Path) -> Iterator[list[Rank]]:
    """The ranks of a run, which end with us; what they say goes to a file."""
    # No module of the user's working folder may stand in for one of ours, and no run is logged
    # elsewhere that is made only to be killed.
    environment = os.environ | {"PYTHONSAFEPATH": "1", "WANDB_MODE": "disabled"}
    environment.pop("WANDB_API_KEY", None)
    command = proof.command(config, folder)
    with open(words_path(folder), "ab") as words:
        # Each leads a session, with what it starts to compile.
        ranks = [
            subprocess.Popen(
                command, stdout=words, stderr=words, env=environment | own, start_new_session=True
            )
            for own in number_ranks(proof.ranks)
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
