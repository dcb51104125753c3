"""The reference of DPO: the model that the run began with, by which rewards are measured.

With an adapter, it is the model itself with the adapter switched off. Else it is a second copy of
the weights in `model.start`, frozen: 4 bytes a parameter. A resumed run reads that folder again,
and refuses it if its weights have changed.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from model.adapters.layers import has_adapter, without_adapter
from model.transformer import Transformer
from shards.disk.json_files import Json
from shards.reader import Shards
from train.begin.settle import find_again
from train.begin.shape import Beginning
from train.config import Config
from train.ranks.distributed import Rank
from train.targets import MicroBatch


@dataclass(frozen=True)
class Reference:
    """A frozen model, or one of which only an adapter learns."""

    model: Transformer

    @torch.no_grad()
    def lose(self, batch: MicroBatch) -> Tensor:
        """-log p of each target (B, T), 0 where there is none."""
        with self._unadapted():
            losses: Tensor = self.model(
                batch.tokens, batch.targets, grad_scale=None, firsts=batch.firsts
            )
            return losses

    def _unadapted(self) -> AbstractContextManager[None]:
        return without_adapter(self.model) if has_adapter(self.model) else nullcontext()


def open_reference(
    config: Config,
    rank: Rank,
    model: Transformer,
    shards: Shards,
    beginning: Beginning | None,
    origin: Json | None,
    build: Callable[[Beginning], Transformer],
) -> Reference:
    """The reference of a run: its own model, or a copy of the one that it started from.

    A new run has that folder, its `beginning`; one that goes on finds it again, by the `origin`
    that its checkpoint names. `build` makes a model of it. All ranks call this together. Raises
    ValueError if other weights are there now.
    """
    if has_adapter(model):
        return Reference(model)
    if beginning is None:
        assert origin is not None, "train/start/objective.py asks for model.start"
        beginning = find_again(config, rank, shards, origin)
    return Reference(build(beginning).requires_grad_(False).eval())
