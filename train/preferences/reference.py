"""The reference of DPO: the model that the run began with, which rewards are measured by.

With an adapter it is the model itself, with the adapter switched off. Else it is a second copy of
the weights in `model.start`, frozen: it takes 4 bytes a parameter, and a run that goes on reads the
folder again, and refuses one whose weights are others by now.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.adapters.layers import has_adapter, without_adapter
from model.transformer import Transformer
from shards.disk.json_files import Json
from shards.reader import Shards
from train.begin.shape import SETTING, Beginning, find_beginning
from train.begin.weights import ORIGIN, describe_origin
from train.config import Config
from train.ranks.distributed import Rank
from train.ranks.exchange import share_json


@dataclass(frozen=True)
class Reference:
    """A frozen model, or one that learns by an adapter alone."""

    model: Transformer

    @torch.no_grad()
    def lose(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """-log p of each target (B, T) after tokens (B, T), 0 where there is none."""
        with self._unadapted():
            losses: Tensor = self.model(tokens, targets, grad_scale=None)
            return losses

    def _unadapted(self) -> AbstractContextManager[None]:
        return without_adapter(self.model) if has_adapter(self.model) else nullcontext()


def open_reference(
    config: Config,
    rank: Rank,
    model: Transformer,
    shards: Shards,
    state: Json | None,
    build: Callable[[Beginning], Transformer],
) -> Reference:
    """The reference of a run that learns preferences; all ranks call this together.

    `state` is that of the checkpoint that it goes on from, and `build` makes a model with the
    weights of a folder. Raises ValueError if those are not what the run began with.
    """
    if has_adapter(model):
        return Reference(model)
    found = share_json(rank, rank.do_first(lambda: find_frozen(config, shards, state)))
    beginning = Beginning(Path(found["folder"]), model.config, found["known_ids"])
    return Reference(build(beginning).requires_grad_(False))


def find_frozen(config: Config, shards: Shards, state: Json | None) -> Json:
    """On the first rank: where the weights are that a run began with, and how many ids they know."""
    assert config.model.start is not None
    beginning = find_beginning(config.model.start, shards)
    folder = beginning.folder
    before = state and state.get(ORIGIN)
    if before and describe_origin(folder)["weights_sha256"] != before["weights_sha256"]:
        raise ValueError(
            f"{SETTING}={config.model.start}: {folder} has other weights than those that the run "
            "began with, by which training.objective=dpo measures; put them back"
        )
    return {"folder": str(folder), "known_ids": beginning.known_ids}
