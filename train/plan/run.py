"""`velocity plan`, from the request to what is shown."""

import json
from collections.abc import Sequence

from shards.order import make_order
from train.gpus import GIGABYTE, find_gpu
from train.plan.plan import Machines, Wishes, make_plan
from train.plan.request import Request
from train.plan.show import describe_plan, describe_sizes, plan_as_json
from train.settings import load_config
from train.start.choose import list_configs
from train.start.ids import fit_model


def run_plan(request: Request, overrides: Sequence[str]) -> list[str]:
    """The lines to show. Raises ValueError for settings, GPUs or sets that are none."""
    if request.config == "list":
        return list_configs()
    config, set_tokens = load_config(request.config, overrides), None
    if request.shards is not None:
        from shards.reader import open_shards
        from shards.where.choice import choose_windows

        shards = open_shards(request.shards)
        config = fit_model(config, request.shards, shards.manifest)
        # Both refuse a set without a window, as the run would.
        length = config.data.max_seq_length
        set_tokens = choose_windows(shards, config.data.where, length).num_tokens
        make_order(shards.manifest, length, config.infrastructure.seed, set_tokens)
    machines = find_machines(request)
    if machines is None:
        return describe_sizes(config)
    wishes = Wishes(request.mfu, request.price, set_tokens)
    made = make_plan(config, machines, wishes)
    return [json.dumps(plan_as_json(made))] if request.as_json else describe_plan(made)


def find_machines(request: Request) -> Machines | None:
    """The GPUs that were named; None if none were."""
    gpu = None if request.gpu is None else find_gpu(request.gpu)
    if request.gpu_memory is not None:
        return Machines(request.gpus, round(request.gpu_memory * GIGABYTE), gpu)
    return None if gpu is None else Machines(request.gpus, gpu.num_bytes, gpu)
