"""One run to a folder: who may write checkpoints and a log where, so that two never mix."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shards.disk.lock import hold, is_held_elsewhere
from train.config import InfrastructureConfig
from train.ranks.distributed import Rank

LOCK = ".lock"
# How long locks of a machine that was lost may last on a shared file system (NFSv4: 90 s).
LOST_SECONDS = 120.0
# How often torchrun, on this machine, and Slurm have started the run again.
RESTARTS = "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"


@contextmanager
def claim_folders(config: InfrastructureConfig, rank: Rank) -> Iterator[None]:
    """Be the only run that writes into output_dir and logging_dir.

    ValueError on the first rank, which holds the locks, if another run does; see `Rank.do_first`.
    """
    with ExitStack() as locks:
        # A machine that takes the place of a lost one has restarted nothing itself.
        is_restarted = rank.max(any(os.environ.get(name, "0") != "0" for name in RESTARTS)) > 0
        rank.do_first(lambda: hold_both(config, locks, is_restarted))
        yield


def hold_both(config: InfrastructureConfig, locks: ExitStack, is_restarted: bool) -> None:
    """Hold the locks of both folders; of one, if they are the same."""
    output, log = Path(config.output_dir), config.log_folder
    claim(output, f"{output}: another run is writing its checkpoints there", locks, is_restarted)
    if os.path.realpath(output) != os.path.realpath(log):
        claim(log, f"{log}: another run is writing its log there", locks, is_restarted)


def claim(folder: Path, found: str, locks: ExitStack, is_restarted: bool) -> None:
    """Hold the lock of a folder, and wait for it where its holder may be a machine that is lost."""
    may_be_lost = is_restarted or is_held_elsewhere(folder / LOCK)
    locks.enter_context(hold(folder, folder / LOCK, found, LOST_SECONDS if may_be_lost else None))
