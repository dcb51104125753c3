"""What fits GPUs of the common sizes: the table of docs/plan.md, and of a plan for no GPU named."""

from shards.screen.lines import format_plural
from train.config import Config
from train.gpus import GIGABYTE
from train.plan.plan import MAX_MICRO_BATCH, find_fewest_ranks, largest_micro_batch
from train.start.fit import KINDS

# Of the GPUs that are rented most, as they are sold.
GIGABYTES = (24, 40, 80, 141)


def tabulate_sizes(config: Config, num_ranks: int = 1) -> list[list[str]]:
    """A row for each size: the largest micro-batch by kind of checkpointing, and ranks for fsdp.

    A header comes first; `-` stands for what does not fit.
    """
    rows = [["a GPU of", *KINDS, "fsdp from"]]
    for gigabytes in GIGABYTES:
        num_bytes = gigabytes * GIGABYTE
        largest = [largest_micro_batch(config, kind, num_ranks, num_bytes) for kind in KINDS]
        fewest = find_fewest_ranks(config, num_bytes)
        ranks = "-" if fewest is None else format_plural(fewest, "GPU")
        rows.append([f"{gigabytes} GB", *map(show_size, largest), ranks])
    return rows


def show_size(largest: int) -> str:
    """A largest micro-batch as a cell of a table.

    >>> show_size(0), show_size(24), show_size(4096)
    ('-', '24', '4,096 or more')
    """
    more = " or more" if largest == MAX_MICRO_BATCH else ""
    return f"{largest:,}{more}" if largest else "-"
