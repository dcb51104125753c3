"""`velocity plan`, from the request to what is shown."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shards.mixture.entries import Entry
from train.config import Config
from train.gpus import GIGABYTE, find_gpu
from train.plan.contexts import (
    Context,
    compare_contexts,
    contexts_as_json,
    tabulate_contexts,
)
from train.plan.plan import Machines, Wishes, make_plan
from train.plan.request import Request
from train.plan.show import describe_plan, describe_sizes, plan_as_json
from train.settings import load_config
from train.start.choose import list_configs
from train.start.ids import find_length, fit_sets

if TYPE_CHECKING:
    from shards.inspect.lengths import Lengths
    from shards.mixture.sets import MixedOrder
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

        read = replace(config.data, mixture=entries, where=None)  # Entries have their own.
        length = find_length(replace(config, data=read))
        # Refuses a set without a window, as the run would.
        sets = open_sets(entries, length, config.infrastructure.seed)
        order = MixedOrder.begin(sets)
        config = take_start(config, sets.first)
        config = fit_sets(config, sets, request.gpus)
    elif config.data.max_seq_length:
        config = take_start(config, None)
    else:
        raise ValueError(
            "data.max_seq_length is auto, which is the rows of a packed set; give it with "
            "--shards, or say how many tokens a sample has"
        )
    machines, wishes = find_machines(request), Wishes(request.mfu, request.price, order)
    contexts: list[Context] = []
    if request.contexts:
        lengths = count_all_lengths(order, entries) if order and entries else None
        contexts = compare_contexts(config, machines, wishes, lengths)
    table = ["", *tabulate_contexts(config, machines, contexts)] if contexts else []
    if machines is None:
        return [*describe_sizes(config), *table]
    made = make_plan(config, machines, wishes)
    if not request.as_json:
        return [*describe_plan(made), *table]
    more = {"contexts": contexts_as_json(contexts)} if contexts else {}
    return [json.dumps(plan_as_json(made) | more)]


def count_all_lengths(order: "MixedOrder", entries: Sequence[Entry]) -> "Lengths":
    """The lengths of the documents of all sets that a run reads."""
    from shards.inspect.lengths import LengthCounter, count_lengths

    counter = LengthCounter()
    for entry, source in zip(entries, order.sets.sources, strict=True):
        count_lengths(source.shards, entry.where, counter)
    return counter.finish()


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
