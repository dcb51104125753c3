"""A model as texts need it: tokens in, logits of the next ones out, and caches for them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.cache import KVCache, allocate_cache
from model.steps.cpu import Step
from model.steps.cuda import GraphStep
from model.transformer import Transformer


class Predictor:
    """A model whose first `num_words` tokens have a meaning; its head may have more rows."""

    def __init__(self, model: Transformer, num_words: int) -> None:
        self.model = model.eval()
        self.num_words = num_words
        # Whether a prompt is read alone and at once, as its tokens turn by the length of them all.
        self.reads_whole = model.config.rope_type == "dynamic"
        # What takes few tokens through the model, if not torch alone.
        self.step: Step | GraphStep | None = None

    def allocate(self, num_rows: int, num_tokens: int) -> KVCache:
        """A cache of so many empty rows, each with room for so many tokens."""
        norm = self.model.model.norm.weight  # Narrow weights are widened: their dtype says nothing.
        return allocate_cache(self.model.config, num_rows, num_tokens, norm.device, norm.dtype)

    def predict(
        self, tokens: Sequence[Sequence[int]], cache: KVCache, places: Sequence[int] | None = None
    ) -> Tensor:
        """The next token's fp32 logits (B, num_words) after B rows of T tokens, now in the cache.

        With `places`, counted through the B * T tokens, after each of those: (P, num_words).
        """
        device = cache.keys.device
        picked = None if places is None else torch.tensor(places, device=device, dtype=torch.long)
        rows = torch.tensor(tokens, device=device)
        step = self.step
        if step is not None and step.takes(*rows.shape):
            logits = step.predict(rows, cache, picked)
        else:
            logits = self.model.predict(rows, cache, picked)
        return logits[:, : self.num_words]
