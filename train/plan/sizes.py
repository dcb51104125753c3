"""What fits GPUs of the common sizes: the table of docs/plan.md, and of a plan for no GPU named."""

from train.config import Config
from train.gpus import GIGABYTE
from train.plan.plan import find_fewest_ranks, find_largest
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
        largest = [find_largest(config, kind, num_ranks, num_bytes) for kind in KINDS]
        fewest = find_fewest_ranks(config, num_bytes)
        ranks = "-" if fewest is None else f"{fewest} GPU{'s' if fewest > 1 else ''}"
        rows.append([f"{gigabytes} GB", *(f"{size:,}" if size else "-" for size in largest), ranks])
    return rows
