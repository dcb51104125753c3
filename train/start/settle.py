"""Settings that say auto become what this run takes, at its start: all ranks the same."""

from shards.screen.lines import Say, format_bytes
from train.config import Config
from train.ranks.distributed import Rank
from train.start.batch import settle_batch
from train.start.fit import describe_choice, find_fitting, find_least, is_open, keep_choice
from train.start.report import find_available

# Of the memory that is free, what a run may plan with: other programs want some of a CPU's.
SHARES = {"cuda": 0.95}
CPU_SHARE = 0.8


def settle_config(config: Config, before: Config | None, rank: Rank, say: Say) -> Config:
    """The settings with numbers and kinds in place of auto, as they fit the memory of every rank.

    `before` are those of the checkpoint that the run goes on from: what it had is kept. Raises
    ValueError if the settings contradict each other.
    """
    if before is not None:
        config = keep_choice(config, before, rank.world_size)
    if not is_open(config):
        return settle_batch(config, rank.world_size)
    _, free = find_available(rank) or (0, 0)
    usable = int(free * SHARES.get(rank.device.type, CPU_SHARE))
    # The rank with the least memory decides.
    usable = -rank.max(-usable)
    chosen = find_fitting(config, rank.device.type, rank.world_size, usable)
    chosen = chosen or find_least(config, rank.world_size)
    say(f"auto: {describe_choice(chosen)}, for {format_bytes(usable)} of memory a rank")
    return chosen
