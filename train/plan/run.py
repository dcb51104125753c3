"""`velocity plan`, from the request to what is shown."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shards.mixture.entries import Entry
from train.config import Config
from train.gpus import GIGABYTE, find_gpu
from train.plan.plan import Machines, Wishes, make_plan
from train.plan.request import Request
from train.plan.show import describe_plan, describe_sizes, plan_as_json
from train.settings import load_config
from train.start.choose import list_configs
from train.start.ids import fit_model

if TYPE_CHECKING:
    from shards.reader import Shards


def run_plan(request: Request, overrides: Sequence[str]) -> list[str]:
    """The lines to show. Raises ValueError for settings, GPUs or sets that are none."""
    if request.config == "list":
        return list_configs()
    config, order = load_config(request.config, overrides), None
    entries = config.data.mixture
    if request.shards is not None:
        entries = (Entry(str(request.shards), 1.0, config.data.where),)
    if entries is not None:
        from shards.mixture.sets import MixedOrder, open_sets

        # Refuses a set without a window, as the run would.
        sets = open_sets(entries, config.data.max_seq_length, config.infrastructure.seed)
        order = MixedOrder.begin(sets)
        config = take_start(config, sets.first)
        config = fit_model(config, sets.first.folder, sets.first.manifest)
    else:
        config = take_start(config, None)
    machines = find_machines(request)
    if machines is None:
        return describe_sizes(config)
    wishes = Wishes(request.mfu, request.price, order)
    made = make_plan(config, machines, wishes)
    return [json.dumps(plan_as_json(made))] if request.as_json else describe_plan(made)


def take_start(config: Config, shards: "Shards | None") -> Config:
    """The settings with the shape of the folder that model.start names, if it names one."""
    if config.model.start is None:
        return config
    from train.begin.shape import begin_shape

    return begin_shape(config, shards)


def find_machines(request: Request) -> Machines | None:
    """The GPUs that were named; None if none were."""
    gpu = None if request.gpu is None else find_gpu(request.gpu)
    if request.gpu_memory is not None:
        return Machines(request.gpus, round(request.gpu_memory * GIGABYTE), gpu)
    return None if gpu is None else Machines(request.gpus, gpu.num_bytes, gpu)
