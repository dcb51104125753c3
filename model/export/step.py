"""The model as one function of tokens and past keys and values: what ONNX and AOTInductor take.

    logits, present_0_key, present_0_value, ... = step(tokens, mask, positions, past_0_key, ...)

Their graphs take tensors, not a cache that is written in place, and one graph has to do a prompt, a
single token after a past, and rows of unequal lengths, which are filled up on the left. So the
model's weights and norms are used here with attention over such a past, and plain products.

B rows, T new tokens, P past ones, S = P + T, H heads, G of keys and values, K head size,
V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.rotation import find_frequencies, find_length_factor
from model.transformer import Attention, Block, Transformer, rotate

Stepping = Callable[..., Sequence[Tensor]]


class Step(nn.Module):
    """One step of a model; `num_words` rows of the head are kept, the others are padding.

    tokens, positions (B, T) and mask (B, S), all int64; the mask is 1 for a token and 0 for a
    filler. Each past is (B, G, P, K), and so is what comes back, (B, G, S, K), after the logits
    (B, T, num_words).
    """

    frequencies: Tensor

    def __init__(self, model: Transformer, num_words: int) -> None:
        super().__init__()
        config = model.config
        if config.rope_type == "dynamic":
            raise ValueError(
                "the checkpoint's rope_type is dynamic, whose angles change with the length of a "
                "text; this format has one set of angles"
            )
        self.config = config
        self.num_words = num_words
        self.model = model
        self.length_factor = find_length_factor(config)
        angles = find_frequencies(torch.zeros(1, 1, dtype=torch.int64), config)
        self.register_buffer("frequencies", angles)

    def forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, *past: Tensor) -> Any:
        decoder = self.model.model
        x = decoder.embed_tokens(tokens)
        angles = positions[:, None, :, None].float() * self.frequencies
        rotation = (angles.cos() * self.length_factor, angles.sin() * self.length_factor)
        num_new, num_all = tokens.shape[1], mask.shape[1]
        newest = torch.arange(num_new, device=tokens.device) + (num_all - num_new)
        places = torch.arange(num_all, device=tokens.device)
        seen = (places <= newest[:, None]) & (mask[:, None, None, :] != 0)  # (B, 1, T, S)
        # Not -inf: a filler sees nothing, and what it becomes must be finite.
        bias = torch.where(seen, 0.0, torch.finfo(x.dtype).min).to(x.dtype)
        present: list[Tensor] = []
        for layer, each in enumerate(decoder.layers):
            block = cast(Block, each)
            keys, values = past[2 * layer], past[2 * layer + 1]
            normed = block.input_layernorm(x)
            mixed, keys, values = attend(block.self_attn, normed, rotation, bias, keys, values)
            x = x + mixed
            normed, mlp = block.post_attention_layernorm(x), block.mlp
            inner = F.silu(multiply(normed, mlp.gate_proj)) * multiply(normed, mlp.up_proj)
            x = x + multiply(inner, mlp.down_proj)
            present += [keys, values]
        head = self.model.lm_head.weight
        if self.num_words < self.config.num_ids:
            head = head[: self.num_words]
        return (F.linear(decoder.norm(x), head).float(), *present)


def attend(
    layer: Attention,
    x: Tensor,
    rotation: tuple[Tensor, Tensor],
    bias: Tensor,
    past_keys: Tensor,
    past_values: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """What attention adds to x (B, T, D), and all keys and values (B, G, S, K)."""
    heads = (*x.shape[:2], -1, layer.head_size)
    q = rotate(multiply(x, layer.q_proj).view(heads).transpose(1, 2), rotation)  # (B, H, T, K)
    k = rotate(multiply(x, layer.k_proj).view(heads).transpose(1, 2), rotation)  # (B, G, T, K)
    v = multiply(x, layer.v_proj).view(heads).transpose(1, 2)
    keys, values = torch.cat((past_keys, k), 2), torch.cat((past_values, v), 2)
    shared = q.shape[1] // k.shape[1]
    y = F.scaled_dot_product_attention(
        q, keys.repeat_interleave(shared, 1), values.repeat_interleave(shared, 1), attn_mask=bias
    )
    return multiply(y.transpose(1, 2).flatten(2), layer.o_proj), keys, values


def multiply(x: Tensor, layer: nn.Module) -> Tensor:
    """What a layer without a bias gives: a plain product, whatever route this machine takes."""
    return F.linear(x, cast(Tensor, layer.weight))


def make_example(config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Inputs that no two of are alike: tracing joins what is the same tensor, silently."""
    rows, new, old = 2, 3, 4
    tokens = torch.arange(rows * new).view(rows, new) % config.num_ids
    mask = torch.ones(rows, old + new, dtype=torch.int64)
    positions = torch.arange(old, old + new).expand(rows, new).contiguous()
    shape = (rows, config.num_kv_heads, old, config.head_size)
    past = [torch.full(shape, 0.01 * n, dtype=dtype) for n in range(2 * config.num_hidden_layers)]
    return (tokens, mask, positions, *past)


def name_dimensions(config: ModelConfig) -> tuple[Any, ...]:
    """Which dimensions of the example's inputs may have any size."""
    rows, new, old, all_ = (
        torch.export.Dim(name, min=least)
        for name, least in (("batch", 1), ("sequence", 1), ("past", 0), ("total", 1))
    )
    past = {0: rows, 2: old}
    first = ({0: rows, 1: new}, {0: rows, 1: all_}, {0: rows, 1: new})
    return (*first, tuple(past for _ in range(2 * config.num_hidden_layers)))


def run_in_parts(step: Stepping, tokens: Tensor, config: ModelConfig, dtype: torch.dtype) -> Tensor:
    """The logits (B, T, V) of whole texts by three calls: no past, a past, and a single token."""
    shape = (len(tokens), config.num_kv_heads, 0, config.head_size)
    past: list[Tensor] = [torch.zeros(shape, dtype=dtype)] * (2 * config.num_hidden_layers)
    logits: list[Tensor] = []
    for start, end in cut_parts(tokens.shape[1]):
        positions = torch.arange(start, end).expand(len(tokens), -1).contiguous()
        mask = torch.ones(len(tokens), end, dtype=torch.int64)
        found, *past = step(tokens[:, start:end].contiguous(), mask, positions, *past)
        logits.append(found)
    return torch.cat(logits, 1)


def cut_parts(num_tokens: int) -> Iterator[tuple[int, int]]:
    """Where the parts of a text begin and end.

    >>> list(cut_parts(8)), list(cut_parts(2))
    ([(0, 4), (4, 7), (7, 8)], [(0, 1), (1, 2)])
    """
    edges = sorted({0, num_tokens // 2, num_tokens - 1, num_tokens})
    yield from pairwise(edges)
