"""The keys and values attention has already computed, kept so that a new token costs one step.

Each row has its own length, so rows of different lengths are decoded together. Rows come and go:
memory grows with the longest row and the most rows there were, up to what is allowed.

L layers, B rows, G heads of keys and values, M tokens of room in each row, K head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig


class KVCache:
    """Keys and values of B rows; row b holds its first lengths[b] tokens.

    `keys` and `values` (L, at least B, G, M, K) have room for more rows. What is in it behind a
    row's length is never seen.
    """

    def __init__(self, keys: Tensor, values: Tensor, lengths: Sequence[int]) -> None:
        self.keys = keys
        self.values = values
        self.set_lengths(lengths)

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Set how many rows there are and how many tokens each holds."""
        self.lengths = list(lengths)

    def begin(self, num_tokens: int) -> Tensor:
        """Get ready for the next `num_tokens` tokens of every row; returns their positions (B, T).

        The lengths change once all layers have appended, by `set_lengths`.
        """
        device, longest = self.keys.device, max(self.lengths)
        ends = torch.tensor(self.lengths, device=device)[:, None]
        self.positions = ends + torch.arange(num_tokens, device=device)
        self.num_seen = longest + num_tokens
        self.are_equal = longest == min(self.lengths)
        # (B, 1, T, n): a token sees itself and those before it. None where all of a row's is seen
        # by its only new token, or where attention is plainly causal.
        self.mask: Tensor | None = None
        if not self.are_equal or (num_tokens > 1 and longest > 0):
            places = torch.arange(self.num_seen, device=device)
            self.mask = (places <= self.positions[:, :, None])[:, None]
        return self.positions

    def layer(self, index: int) -> "LayerCache":
        """One layer, for its attention to append to and read."""
        num_rows = len(self.lengths)
        return LayerCache(self, self.keys[index, :num_rows], self.values[index, :num_rows])

    def select(self, rows: list[int]) -> "KVCache":
        """A copy with these rows in this order; a row may be named more than once."""
        lengths = [self.lengths[row] for row in rows]
        return KVCache(self.keys[:, rows], self.values[:, rows], lengths)

    def remove(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            self._copy_row(self, last, row)
            self.lengths[row] = self.lengths[last]
        self.set_lengths(self.lengths[:last])

    def insert(self, other: "KVCache", row: int) -> None:
        """Add a copy of a row of another cache as the last row; there must be room."""
        self._copy_row(other, row, len(self.lengths))
        self.set_lengths([*self.lengths, other.lengths[row]])

    def _copy_row(self, other: "KVCache", source: int, target: int) -> None:
        held = slice(other.lengths[source])
        for mine, others in ((self.keys, other.keys), (self.values, other.values)):
            mine[:, target, :, held] = others[:, source, :, held]

    def make_room(self, num_rows: int, num_tokens: int) -> None:
        """Make sure that there is room for so many rows of so many tokens, by growing."""
        layers, old_rows, heads, old_tokens, size = self.keys.shape
        if num_rows <= old_rows and num_tokens <= old_tokens:
            return
        shape = (layers, max(num_rows, old_rows), heads, max(num_tokens, old_tokens), size)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(shape)
            new[:, :old_rows, :, :old_tokens] = old
            setattr(self, name, new)


@dataclass(frozen=True)
class LayerCache:
    """Keys and values (B, G, M, K) of one layer of `whole`."""

    whole: KVCache
    keys: Tensor
    values: Tensor

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append k, v (B, G, T, K) to each row; return all keys and values up to n, and the mask.

        `begin` was told T. The lengths change once all layers have appended.
        """
        n = self.whole.num_seen
        if self.whole.are_equal:
            self.keys[:, :, n - k.shape[2] : n] = k
            self.values[:, :, n - k.shape[2] : n] = v
        else:
            rows = torch.arange(len(k), device=k.device)[:, None]
            self.keys[rows, :, self.whole.positions] = k.transpose(1, 2)
            self.values[rows, :, self.whole.positions] = v.transpose(1, 2)
        return self.keys[:, :, :n], self.values[:, :, :n], self.whole.mask


def allocate_cache(
    config: ModelConfig, num_rows: int, max_tokens: int, device: torch.device, dtype: torch.dtype
) -> KVCache:
    """An empty cache. It starts as zeros, because what a mask hides must still be finite."""
    layers, heads = config.num_hidden_layers, config.num_kv_heads
    shape = (2, layers, num_rows, heads, max_tokens, config.head_size)
    keys, values = torch.zeros(shape, device=device, dtype=dtype)
    return KVCache(keys, values, [0] * num_rows)
