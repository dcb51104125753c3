"""The keys and values attention has already computed, kept so that a new token costs one step.

Memory is allocated once, for all tokens that will be needed. Each row has its own length, so rows
of different lengths are decoded together without padding.

L layers, B rows, G heads of keys and values, M the most tokens a row may hold, K head size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig


class KVCache:
    """Keys and values (L, B, G, M, K) of B rows; row b holds its first lengths[b] tokens."""

    def __init__(self, keys: Tensor, values: Tensor, lengths: list[int]) -> None:
        self.keys = keys
        self.values = values
        self.set_lengths(lengths)

    def set_lengths(self, lengths: list[int]) -> None:
        """Set how many tokens each row holds, and so where its next one goes and what it sees."""
        self.lengths = lengths
        self.ends = torch.tensor(lengths, device=self.keys.device)  # (B,)
        self.mask: Tensor | None = None  # (B, 1, 1, n); not needed where all lengths are equal
        if len(set(lengths)) > 1:
            places = torch.arange(max(lengths) + 1, device=self.keys.device)
            self.mask = (places <= self.ends[:, None])[:, None, None, :]

    def positions(self, num_tokens: int) -> Tensor:
        """The positions (B, T) of every row's next `num_tokens` tokens."""
        return self.ends[:, None] + torch.arange(num_tokens, device=self.keys.device)

    def layer(self, index: int) -> "LayerCache":
        """One layer, for its attention to append to and read."""
        return LayerCache(self, self.keys[index], self.values[index])

    def row(self, index: int) -> "KVCache":
        """One row as a cache of its own, sharing this one's memory."""
        one = slice(index, index + 1)
        return KVCache(self.keys[:, one], self.values[:, one], self.lengths[one])

    def select(self, rows: list[int]) -> "KVCache":
        """A copy with these rows in this order; a row may be named more than once."""
        lengths = [self.lengths[row] for row in rows]
        return KVCache(self.keys[:, rows], self.values[:, rows], lengths)


@dataclass(frozen=True)
class LayerCache:
    """Keys and values (B, G, M, K) of one layer of `whole`."""

    whole: KVCache
    keys: Tensor
    values: Tensor

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append k, v (B, G, T, K) to each row; return all keys and values up to n, and the mask.

        T is 1, or every row is empty. The lengths change once all layers have appended.
        """
        num_tokens, longest = k.shape[2], max(self.whole.lengths)
        assert num_tokens == 1 or longest == 0, "only empty rows take several tokens at once"
        if self.whole.mask is None:
            self.keys[:, :, longest : longest + num_tokens] = k
            self.values[:, :, longest : longest + num_tokens] = v
        else:
            rows = torch.arange(len(k), device=k.device)
            self.keys[rows, :, self.whole.ends] = k[:, :, 0]
            self.values[rows, :, self.whole.ends] = v[:, :, 0]
        n = longest + num_tokens
        return self.keys[:, :, :n], self.values[:, :, :n], self.whole.mask


def allocate_cache(
    config: ModelConfig, num_rows: int, max_tokens: int, device: torch.device, dtype: torch.dtype
) -> KVCache:
    """An empty cache. It starts as zeros, because what a mask hides must still be finite."""
    layers, heads = config.num_hidden_layers, config.num_kv_heads
    shape = (2, layers, num_rows, heads, max_tokens, config.head_size)
    keys, values = torch.zeros(shape, device=device, dtype=dtype)
    return KVCache(keys, values, [0] * num_rows)
