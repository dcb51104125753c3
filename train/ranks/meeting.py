"""How the ranks of a run meet: all in one store, under a prefix that no earlier start has used.

torchrun may keep its store over restarts, and what the processes before wrote there, such as
where they listened, would be taken for what those of now have written.
"""

import os
import time
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from train.ranks.place import name_ranks

# All processes of a run are started at about the same time; Python and torch may load slowly.
MEETING_SECONDS = 600.0


def meet(rank: int, world_size: int) -> PrefixStore:
    """The store of this start of the run, when all ranks are there.

    ConnectionError if they cannot meet; TimeoutError, on the first rank with which ones, if some
    did not come.
    """
    store = connect(rank)
    try:
        name = gather(store, world_size) if rank == 0 else find_gathering(store, rank)
        store.wait([f"{name}/all"], timedelta(seconds=MEETING_SECONDS))
    except dist.DistNetworkError as error:
        raise describe_failure(error) from error
    except dist.DistStoreError as error:
        raise TimeoutError(
            f"the ranks did not meet within {MEETING_SECONDS:.0f} s; the first one says which did "
            "not come"
        ) from error
    return PrefixStore(name, store)


def connect(rank: int) -> Store:
    """The store at MASTER_ADDR, which torchrun or else the first rank holds."""
    is_torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        return TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=rank == 0 and not is_torchruns,
            timeout=timedelta(seconds=MEETING_SECONDS),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except dist.DistNetworkError as error:
        raise describe_failure(error) from error


def describe_failure(error: Exception) -> ConnectionError:
    """What to do if the ranks cannot reach each other."""
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    reason = str(error).strip().partition("\n")[0]
    return ConnectionError(
        f"the ranks cannot meet at {place} ({reason}); set MASTER_PORT to a port that is "
        "free, the same for all ranks"
    )


def gather(store: Store, world_size: int) -> str:
    """Answer the other ranks until all are there; returns the name of this start.

    What an earlier process of a rank asked is answered as well, but it will not come.
    """
    name = uuid4().hex
    missing = list(range(1, world_size))
    deadline = time.monotonic() + MEETING_SECONDS
    while missing:
        for rank in missing:
            if store.check([f"asks/{rank}"]):
                store.set(f"answer/{store.get(f'asks/{rank}').decode()}", name)
        missing = [rank for rank in missing if not store.check([f"{name}/{rank}"])]
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{name_ranks(missing)} of {world_size} did not come within "
                f"{MEETING_SECONDS:.0f} s; see what these say, or whether they were started"
            )
        if missing:
            time.sleep(0.05)
    store.set(f"{name}/all", "")
    return name


def find_gathering(store: Store, rank: int) -> str:
    """Ask the first rank, and come to where it says; returns the name of this start."""
    own = uuid4().hex
    store.set(f"asks/{rank}", own)
    store.wait([f"answer/{own}"], timedelta(seconds=MEETING_SECONDS))
    name: str = store.get(f"answer/{own}").decode()
    store.set(f"{name}/{rank}", "")
    return name
