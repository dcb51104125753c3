"""One run to a folder: who may write checkpoints and a log where, so that two never mix."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shards.disk.lock import hold
from train.config import InfrastructureConfig
from train.ranks.distributed import Rank

LOCK = ".lock"


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
    locks.enter_context(
        hold(output, output / LOCK, f"{output}: another run is writing its checkpoints there")
    )
    if os.path.realpath(output) != os.path.realpath(log):
        locks.enter_context(hold(log, log / LOCK, f"{log}: another run is writing its log there"))
