"""`velocity verify-resume`: a run to its end, and one that is killed and started again, compared.

Both are real runs with the run's own settings, but so many steps and folders of their own. The
second run gets SIGKILL behind a checkpoint, all ranks at once.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.checkpoints.seal import list_checkpoints
from shards.disk.folders import make_folder
from shards.disk.space import check_space
from shards.mixture.sets import open_sets
from shards.screen.lines import Say
from train.begin.shape import begin_shape
from train.config import Config
from train.proof.differences import find_differences, find_first_unlike, read_losses
from train.proof.processes import describe_failure, kill, run_to_end, started, train_command
from train.settings import load_config
from train.start.ids import find_length, fit_sets
from train.step.schedule import default_cycle_steps

LOOK_SECONDS = 0.002
# Both runs keep the checkpoint in the middle and the last one.
NUM_CHECKPOINTS = 4


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
            "training.epochs": "null",
            "training.cycle_steps": cycle,
            "training.save_steps": self.middle,
            "training.save_total_limit": 2,
            "training.logging_steps": 1,
            "infrastructure.output_dir": folder,
            "infrastructure.logging_dir": "null",
            "infrastructure.resume_from_checkpoint": "auto",
        }
        return train_command(self.name, self.overrides, own)


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
    sets = open_sets(config.data.entries, find_length(config), config.infrastructure.seed)
    config = begin_shape(config, sets.first)
    config = fit_sets(config, sets, proof.ranks)
    if proof.folder.exists() and any(proof.folder.iterdir()):
        raise ValueError(f"{proof.folder}: is not empty; choose another --out")
    make_folder(proof.folder)
    size = NUM_CHECKPOINTS * config.checkpoint_bytes
    say(check_space(proof.folder, size, "choose another --out", "for four checkpoints"))
    straight, killed = proof.folder / "straight", proof.folder / "killed"

    say(f"a run of {proof.steps:,} steps, to its end")
    run_to_end(proof.command(config, straight), straight, proof.ranks)
    say(f"the same, killed (SIGKILL) after the checkpoint of step {proof.middle:,}")
    last = kill_after(proof, config, killed)
    say(f"killed after step {last:,}; the same command again")
    run_to_end(proof.command(config, killed), killed, proof.ranks)
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


def kill_after(proof: Proof, config: Config, folder: Path) -> int:
    """Kill a run once it has taken a step after its checkpoint; its last logged step."""
    with started(proof.command(config, folder), folder, proof.ranks) as ranks:
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
