"""Rows of the embedding and the head that are trained, where all others are frozen: new tokens.

As peft's `trainable_token_indices`. Where the head is the embedding, they are the same rows.
"""

from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.products import linear
from model.transformer import Linear, Transformer


class TokenRows(nn.Module):
    """The rows (N, D) of some tokens, in place of those of the frozen weight (V, D)."""

    ids: Tensor
    # Which of the rows a token has; -1 = none.
    places: Tensor

    def __init__(self, weight: Tensor, token_ids: tuple[int, ...]) -> None:
        super().__init__()
        self.is_on = True
        ids = torch.tensor(token_ids, device=weight.device)
        places = torch.full((len(weight),), -1, device=weight.device)
        places[ids] = torch.arange(len(ids), device=weight.device)
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("places", places, persistent=False)
        # As peft calls it; it is what the rows are, and no difference.
        self.trainable_tokens_delta = nn.Parameter(weight.detach()[ids].float())

    def put_into(self, weight: Tensor) -> Tensor:
        """A copy of the weight with the rows."""
        return weight.index_copy(0, self.ids, self.trainable_tokens_delta.to(weight.dtype))


class AdaptedEmbedding(nn.Module):
    """An embedding of which some rows are trained."""

    def __init__(self, base: nn.Module, rows: TokenRows) -> None:
        super().__init__()
        self.base, self.token_adapter = base, rows

    def forward(self, tokens: Tensor) -> Tensor:
        x = cast(Tensor, self.base(tokens))
        rows = self.token_adapter
        if not rows.is_on:
            return x
        places = rows.places[tokens]
        own = F.embedding(places.clamp(min=0), rows.trainable_tokens_delta).to(x.dtype)
        return torch.where((places >= 0).unsqueeze(-1), own, x)


class AdaptedHead(nn.Module):
    """A head of which some rows are trained."""

    def __init__(self, base: Linear, rows: TokenRows) -> None:
        super().__init__()
        self.base, self.token_adapter = base, rows

    @property
    def weight(self) -> Tensor:
        """The whole weight (V, D)."""
        rows, weight = self.token_adapter, self.base.weight
        return rows.put_into(weight) if rows.is_on else weight

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


def train_rows(model: Transformer, token_ids: tuple[int, ...]) -> None:
    """Put rows for these tokens into a model whose weights are frozen.

    The model gets as many rows more as they need. ValueError if the ids leave a gap.
    """
    num_ids = model.config.num_ids
    added = range(num_ids, max(token_ids) + 1)
    if len(added) > len(token_ids) or not {*added} <= {*token_ids}:
        raise ValueError(
            f"the adapter has a row for token {max(token_ids):,}, but the model has only "
            f"{num_ids:,} rows; use the base that it was trained on"
        )
    if added:
        grow(model, num_ids + len(added))
    embedding, head = model.model.embed_tokens, model.lm_head
    rows = TokenRows(embedding.weight, token_ids)
    is_tied = model.config.tie_word_embeddings
    head_rows = rows if is_tied else TokenRows(head.weight, token_ids)
    setattr(model.model, "embed_tokens", AdaptedEmbedding(embedding, rows))  # noqa: B010
    setattr(model, "lm_head", AdaptedHead(head, head_rows))  # noqa: B010


def list_rows(model: Transformer) -> tuple[int, ...]:
    """The tokens whose rows are trained; () if the adapter is on linear layers only."""
    embedding: nn.Module = model.model.embed_tokens
    if not isinstance(embedding, AdaptedEmbedding):
        return ()
    return tuple(embedding.token_adapter.ids.tolist())


@torch.no_grad()
def grow(model: Transformer, num_ids: int) -> None:
    """Give a model rows of zeros for more tokens, in place."""
    config = replace(model.config, vocab_size=num_ids)
    model.config = model.model.config = config
    layers = [model.model.embed_tokens] + [model.lm_head] * (not config.tie_word_embeddings)
    for layer in layers:
        wide = layer.weight.new_zeros(num_ids, config.hidden_size)
        wide[: len(layer.weight)] = layer.weight
        layer.weight = nn.Parameter(wide, requires_grad=False)
    model.tie_head()


@torch.no_grad()
def merge_rows(model: Transformer) -> None:
    """Put the rows into the weights, which are plain ones again; if there are any."""
    embedding, head = model.model.embed_tokens, model.lm_head
    if not isinstance(embedding, AdaptedEmbedding) or not isinstance(head, AdaptedHead):
        return
    for adapted in (embedding, head):
        rows, weight = adapted.token_adapter, cast(Tensor, adapted.base.weight)
        weight[rows.ids] = rows.trainable_tokens_delta.to(weight.dtype)
    setattr(model.model, "embed_tokens", embedding.base)  # noqa: B010
    setattr(model, "lm_head", head.base)  # noqa: B010
