"""One run to a folder: who may write checkpoints and a log where, so that two never mix."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shards.disk.lock import hold
from train.config import InfrastructureConfig
from train.ranks.distributed import Rank

LOCK = ".lock"
# How long locks of a machine that was lost may last on a shared file system (NFSv4: 90 s).
LOST_SECONDS = 120.0


@contextmanager
def claim_folders(config: InfrastructureConfig, rank: Rank) -> Iterator[None]:
    """Be the only run that writes into output_dir and logging_dir.

    ValueError on the first rank, which holds the locks, if another run does; see `Rank.do_first`.
    """
    with ExitStack() as locks:
        rank.do_first(lambda: hold_both(config, locks))
        yield


def hold_both(config: InfrastructureConfig, locks: ExitStack) -> None:
    """Hold the locks of both folders; of one, if they are the same."""
    output, log = Path(config.output_dir), config.log_folder
    is_restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    seconds = LOST_SECONDS if is_restarted else None
    found = f"{output}: another run is writing its checkpoints there"
    locks.enter_context(hold(output, output / LOCK, found, seconds))
    if os.path.realpath(output) != os.path.realpath(log):
        found = f"{log}: another run is writing its log there"
        locks.enter_context(hold(log, log / LOCK, found, seconds))
