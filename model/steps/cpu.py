"""A few tokens through a model on a CPU by model/step.c.

A text grows by a token each time all weights have been read. torch's products take a part of what
memory gives, as they are made for many rows, and what is between them takes as long again in a
small model. B rows, T tokens, V vocabulary.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from model.cache import KVCache
from model.int8 import Int8Rows
from model.rotation import Rotation, make_rotation
from model.transformer import Transformer

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
# Angles are computed for so many positions more, once a text is longer.
ANGLES_MULTIPLE = 256


class Weight(ctypes.Structure):
    """As in step.c."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("kind", ctypes.c_int64),
    )


class Layer(ctypes.Structure):
    """As in step.c."""

    _fields_ = (
        ("attention_norm", ctypes.c_void_p),
        ("mlp_norm", ctypes.c_void_p),
        *((name, Weight) for name in ("q", "k", "v", "o", "gate", "up", "down")),
    )


class Model(ctypes.Structure):
    """As in step.c."""

    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        ("num_layers", ctypes.c_int64),
        ("embedding", Weight),
        ("head", Weight),
        ("norm", ctypes.c_void_p),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_size", ctypes.c_int64),
        ("spread", ctypes.c_int64),
        ("eps", ctypes.c_float),
    )


class Cache(ctypes.Structure):
    """As in step.c."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("layer_step", ctypes.c_int64),
        ("row_step", ctypes.c_int64),
        ("room", ctypes.c_int64),
    )


class Step:
    """A model's weights, where they are now, as step.c wants them.

    `max_tokens` is up to how many tokens at a time, B * T, this is to be used.
    """

    def __init__(self, library: ctypes.CDLL, model: Transformer, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._library = library
        self._model = model
        self._weights = make_model(model)
        self._rotation = (torch.empty(0), torch.empty(0))  # Of each position that was met.

    @property
    def is_spread(self) -> bool:
        """Whether weights are read as four long streams, not row by row: the same numbers."""
        return bool(self._weights.spread)

    @is_spread.setter
    def is_spread(self, is_spread: bool) -> None:
        self._weights.spread = is_spread

    def takes(self, num_rows: int, num_tokens: int) -> bool:
        """Whether to use it for so many rows of tokens; not once a cast has moved the weights."""
        is_there = self._weights.head.data == self._model.lm_head.weight.data_ptr()
        return is_there and num_rows * num_tokens <= self.max_tokens

    def predict(self, tokens: Tensor, cache: KVCache, places: Tensor | None = None) -> Tensor:
        """As `Transformer.predict`."""
        num_tokens = tokens.shape[1]
        if places is None:
            places = torch.arange(num_tokens - 1, tokens.numel(), num_tokens)
        logits = torch.empty(len(places), self._weights.head.outputs)
        self.run(tokens, cache, places, logits, self._model.config.num_hidden_layers)
        cache.set_lengths([length + num_tokens for length in cache.lengths])
        return logits

    def run(
        self, tokens: Tensor, cache: KVCache, places: Tensor, logits: Tensor, num_layers: int
    ) -> None:
        """Take tokens (B, T) through the first layers, and find the logits (P, V) at places (P,).

        What a step takes besides reading the weights is mostly what Python does here.
        """
        tokens, weights, size = tokens.contiguous(), self._weights, tokens.numel()
        weights.num_layers = num_layers
        numbers = range(tokens.shape[1])
        positions = [length + number for length in cache.lengths for number in numbers]
        rows = [row for row in range(len(cache.lengths)) for _ in numbers]
        (cos, sin), angles = self._find_rotation(positions, len(numbers))
        head, gate = self._model.config.head_size, weights.layers[0].gate.outputs
        widths = weights.embedding.inputs + (weights.heads + weights.kv_heads) * head + gate
        scratch = torch.empty(2 * size * widths)
        memory = Cache(
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            cache.keys.stride(0),
            cache.keys.stride(1),
            cache.keys.shape[3],
        )
        assert cache.keys.is_contiguous()
        assert cache.values.is_contiguous()
        self._library.velocity_step(
            ctypes.byref(weights),
            ctypes.byref(memory),
            point(tokens),
            make_numbers(rows),
            make_numbers(positions),
            ctypes.c_int64(size),
            point(cos),
            point(sin),
            make_numbers(angles),
            point(places),
            ctypes.c_int64(len(places)),
            point(logits),
            point(scratch),
            ctypes.c_int(torch.get_num_threads()),
        )

    def _find_rotation(
        self, positions: list[int], num_tokens: int
    ) -> tuple[Rotation, Sequence[int]]:
        """Cosines and sines, each (any, K / 2), and which row of them each token has."""
        config = self._model.config
        if config.rope_type == "dynamic":  # A position's angles depend on the row's length.
            cos, sin = make_rotation(torch.tensor(positions).view(-1, num_tokens), config)
            return (cos.flatten(0, 2), sin.flatten(0, 2)), range(len(positions))
        longest = max(positions) + 1
        if longest > len(self._rotation[0]):
            met = torch.arange(-(-longest // ANGLES_MULTIPLE) * ANGLES_MULTIPLE)[None]
            cos, sin = make_rotation(met, config)
            self._rotation = cos[0, 0], sin[0, 0]
        return self._rotation, positions


def make_numbers(numbers: Sequence[int]) -> Any:
    """Numbers as step.c reads them."""
    return (ctypes.c_int64 * len(numbers))(*numbers)


def point(tensor: Tensor) -> ctypes.c_void_p:
    """The place of a tensor's numbers in memory."""
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def make_model(model: Transformer) -> Model:
    """A model's weights and shape."""
    config, decoder = model.config, model.model
    return Model(
        (Layer * config.num_hidden_layers)(*map(make_layer, decoder.layers)),
        config.num_hidden_layers,
        make_weight(decoder.embed_tokens),
        make_weight(model.lm_head),
        decoder.norm.weight.data_ptr(),
        config.num_attention_heads,
        config.num_kv_heads,
        config.head_size,
        False,
        config.layer_norm_eps,
    )


def make_weight(layer: Any) -> Weight:
    """The weight (N, K) of a layer, an embedding or a head, whose rows may be int8."""
    scale = layer.weight_scale.data_ptr() if isinstance(layer, Int8Rows) else None
    outputs, inputs = layer.weight.shape
    assert layer.weight.is_contiguous()
    return Weight(layer.weight.data_ptr(), scale, outputs, inputs, KINDS[layer.weight.dtype])


def make_layer(block: Any) -> Layer:
    """A block's weights."""
    attention, mlp = block.self_attn, block.mlp
    layers = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return Layer(
        block.input_layernorm.weight.data_ptr(),
        block.post_attention_layernorm.weight.data_ptr(),
        *map(make_weight, (*layers, mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
    )
