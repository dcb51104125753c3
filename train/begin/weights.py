"""A folder's weights to all ranks of a run that begins with it: the first one reads each once.

Rows that the set's tokenizer needs and the folder does not have are the mean of those that its own
tokenizer's ids have (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
Models"): with zeros, or small random numbers, a new token would be likelier than most others.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.adapters.base import hash_base
from model.checkpoints.compare import EMBEDDING, HEAD
from model.checkpoints.folder import name_origin, name_weights
from model.checkpoints.seal import (
    CONFIG,
    CheckpointError,
)
from model.checkpoints.weight_files import find_weight_files
from model.checkpoints.weights import list_weights, read_weights
from model.transformer import Transformer
from shards.disk.json_files import Json
from train.begin.shape import Beginning
from train.checkpoints.position import BEGAN_WITH
from train.config import Config
from train.ranks.distributed import Rank
from train.ranks.exchange import share_json, spread_tensor


class Origin:
    """With which weights a run began, for its checkpoints; a part of its state."""

    def __init__(self, state: Json | None = None) -> None:
        self.state: dict[str, Any] = state or {}

    def state_dict(self) -> dict[str, Any]:
        """The folder, and the sha256 of its weights."""
        return self.state

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take over what a checkpoint says."""
        self.state = state


def find_origin(config: Config, rank: Rank, beginning: Beginning | None) -> dict[str, Origin]:
    """The part of a run's state that says with which weights it began, if with a folder's."""
    if config.model.start is None:
        return {}
    if beginning is None:  # Its checkpoint knows.
        return {BEGAN_WITH: Origin()}
    found = rank.do_first(lambda: describe_origin(beginning.folder))
    return {BEGAN_WITH: Origin(share_json(rank, found))}


def describe_origin(folder: Path) -> Json:
    """What checkpoints keep of the folder that their run began with.

    Of weights in several files, the sha256 is that of what `sha256sum` prints of them.
    """
    return {"folder": str(folder.absolute()), "weights_sha256": hash_base(folder)}


def load_weights(beginning: Beginning, rank: Rank, model: Transformer) -> None:
    """Give a new model, which may be sharded over the ranks, the weights of a folder.

    All ranks call this together. CheckpointError on the first one for a folder that has changed or
    is damaged.
    """
    targets = name_weights(model)
    reading = read_in_order(beginning, targets.keys() | {HEAD}) if rank.is_first else None
    names = None
    if rank.is_first:
        files = find_weight_files(beginning.folder)
        names = [name for name in list_weights(files) if name in targets]
    for name in share_json(rank, names):
        spread_tensor(rank, targets[name], make_filler(beginning, reading, name))
        rank.place.move()


def read_in_order(beginning: Beginning, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    """The folder's weights of these names in fp32, in the order of its files."""
    files = find_weight_files(beginning.folder)
    tied: dict[str, Tensor] = {}
    for name, weight in read_weights(files, names, "cpu", torch.float32):
        if beginning.shape.tie_word_embeddings and name in (EMBEDDING, HEAD):
            tied[name] = weight
            if len(tied) == 2 and not torch.equal(*tied.values()):
                raise CheckpointError(
                    f"{name_origin(files)}: {HEAD} differs from {EMBEDDING}, though {CONFIG} says "
                    "that they are the same; set tie_word_embeddings to false there"
                )
            if name == HEAD:
                continue
        yield name, weight


def make_filler(
    beginning: Beginning, reading: Iterator[tuple[str, Tensor]] | None, name: str
) -> Callable[[Tensor], None]:
    """What gives a whole weight of this name its values, on the first rank."""

    def fill(target: Tensor) -> None:
        assert reading is not None
        found, weight = next(reading)
        assert found == name, f"{found} was read in place of {name}"
        target[: len(weight)].copy_(weight)
        if len(weight) < len(target):
            known = weight[: beginning.known_ids]
            target[len(weight) :] = known.mean(0, dtype=torch.float64).to(target)

    return fill
