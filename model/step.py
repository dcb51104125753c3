"""A few tokens through a model on a CPU by model/step.c, where that is faster than by torch.

A text grows by a token each time all weights have been read. torch's products take a part of what
memory gives, as they are made for many rows, and what is between them takes as long again in a
small model. B rows, T tokens, V vocabulary.
"""

import ctypes
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model.cache import KVCache, allocate_cache
from model.compiled import find_library, note_fault
from model.config import KEPT, ModelConfig
from model.int8 import Int8Linear
from model.narrow import round_weights
from model.transformer import Transformer, make_rotation

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
# How many tokens at a time are tried, most first; and on how much of a model.
TOKENS_TRIED = (16, 8, 4, 2, 1)
MAX_TIMED_BYTES = 2**27


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


class Shape(ctypes.Structure):
    """As in step.c."""

    _fields_ = (
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_size", ctypes.c_int64),
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
        config = model.config
        self._layers = (Layer * config.num_hidden_layers)(*map(make_layer, model.model.layers))
        self._head = make_weight(model.lm_head)
        self._shape = Shape(
            config.num_attention_heads,
            config.num_kv_heads,
            config.head_size,
            config.layer_norm_eps,
        )

    def takes(self, num_rows: int, num_tokens: int) -> bool:
        """Whether to use it for so many rows of tokens; not once a cast has moved the weights."""
        is_there = self._head.data == self._model.lm_head.weight.data_ptr()
        return is_there and num_rows * num_tokens <= self.max_tokens

    @torch.inference_mode()
    def predict(self, tokens: Tensor, cache: KVCache, places: Tensor | None = None) -> Tensor:
        """As `Transformer.predict`."""
        num_rows, num_tokens = tokens.shape
        config, decoder = self._model.config, self._model.model
        positions = cache.begin(num_tokens)
        x = decoder.embed_tokens(tokens).float().flatten(0, 1).contiguous()  # (B * T, D)
        cos, sin = (
            angles.expand(num_rows, 1, num_tokens, -1).contiguous()
            for angles in make_rotation(positions, config)
        )
        rows = torch.arange(num_rows).repeat_interleave(num_tokens)
        self.run(x, cache, rows, positions.flatten(), cos, sin, len(self._layers))
        cache.set_lengths([length + num_tokens for length in cache.lengths])
        if places is None:
            places = torch.arange(num_tokens - 1, len(x), num_tokens)
        return self._predict_from(x[places])

    def run(
        self,
        x: Tensor,
        cache: KVCache,
        rows: Tensor,
        positions: Tensor,
        cos: Tensor,
        sin: Tensor,
        num_layers: int,
    ) -> None:
        """Take tokens x (N, D) through the first layers, in place; see step.c."""
        config = self._model.config
        widths = (config.num_attention_heads + config.num_kv_heads) * config.head_size
        scratch = torch.empty(
            len(x) * (config.hidden_size + 2 * widths + 2 * config.intermediate_size)
        )
        keys, values = cache.keys, cache.values
        assert keys.is_contiguous()
        assert values.is_contiguous()
        memory = Cache(
            keys.data_ptr(), values.data_ptr(), keys.stride(0), keys.stride(1), keys.shape[3]
        )
        self._library.velocity_step(
            self._layers,
            ctypes.c_int64(num_layers),
            ctypes.byref(self._shape),
            ctypes.byref(memory),
            point(x),
            ctypes.c_int64(len(x)),
            *map(point, (rows, positions, cos, sin, scratch)),
            ctypes.c_int(torch.get_num_threads()),
        )

    def _predict_from(self, x: Tensor) -> Tensor:
        """The logits (P, V) of what comes out of the last block, x (P, D)."""
        norm = self._model.model.norm
        logits, scratch = torch.empty(len(x), self._head.outputs), torch.empty_like(x)
        self._library.velocity_head(
            point(norm.weight),
            ctypes.c_float(norm.eps),
            ctypes.byref(self._head),
            point(x),
            point(logits),
            ctypes.c_int64(len(x)),
            point(scratch),
            ctypes.c_int(torch.get_num_threads()),
        )
        return logits


def point(tensor: Tensor) -> ctypes.c_void_p:
    """The place of a tensor's numbers in memory."""
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def make_weight(layer: Any) -> Weight:
    """A layer's weight (N, K), of a Linear or an Int8Linear."""
    scale = layer.weight_scale.data_ptr() if isinstance(layer, Int8Linear) else None
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


def find_step(model: Transformer) -> Step | None:
    """What to take few tokens through a model with, timed here and now; None where torch is faster.

    Also where there is no compiler, where what it makes does not compute as torch does, and for a
    model that is not on a CPU, with norms in fp32.
    """
    norm, library = model.model.norm.weight, find_library()
    if library is None or norm.device.type != "cpu" or norm.dtype != torch.float32:
        return None
    if not is_right(library):
        return None
    step = Step(library, model, 0)
    for num_tokens in TOKENS_TRIED:
        ours, plain = time_both(step, model, num_tokens)
        if ours < plain:
            step.max_tokens = num_tokens
            return step
    return None


@torch.inference_mode()
def is_right(library: ctypes.CDLL) -> bool:
    """Whether step.c computes what torch does, on small models of odd sizes."""
    config = ModelConfig(
        vocab_size=37,
        hidden_size=42,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=10,
        intermediate_size=51,
        max_position_embeddings=99,
    )
    for kept in KEPT:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Transformer(config).eval()
        round_weights(model, kept)
        step = Step(library, model, 0)
        found, expected = (follow(predict, config) for predict in (step.predict, model.predict))
        difference = (found - expected).abs().max() / expected.std()
        if not difference < 1e-3:
            note_fault(f"its logits differ by {difference:.3g} of their deviation ({kept})")
            return False
    return True


def follow(predict: Callable[..., Tensor], config: ModelConfig) -> Tensor:
    """The logits of three rows that are read together, then grow from different lengths."""
    tokens = torch.arange(3 * 80).view(3, 80) * 7 % 37
    cache = allocate_cache(config, 3, 96, torch.device("cpu"), torch.float32)
    found = [predict(tokens, cache)]
    cache.set_lengths([3, 70, 1])
    found += [predict(tokens[:, i : i + 1], cache) for i in range(3)]
    found.append(predict(tokens[:, :4], cache, torch.arange(12)))
    return torch.cat(found)


@torch.inference_mode()
def time_both(step: Step, model: Transformer, num_tokens: int) -> tuple[float, float]:
    """Seconds for so many rows of a token each, by step.c and by torch; the shorter of two passes.

    Only through as many layers as hold MAX_TIMED_BYTES: others take as long.
    """
    config, blocks = model.config, model.model.layers
    size = sum(tensor.nbytes for tensor in (*blocks[0].parameters(), *blocks[0].buffers()))
    num_layers = min(len(blocks), max(1, MAX_TIMED_BYTES // size))
    cache = allocate_cache(config, num_tokens, 64, torch.device("cpu"), torch.float32)
    cache.set_lengths([63] * num_tokens)
    positions = cache.begin(1)
    cos, sin = make_rotation(positions, config)
    x, rows = torch.ones(num_tokens, 1, config.hidden_size), torch.arange(num_tokens)
    whole_cos, whole_sin = cos.contiguous(), sin.contiguous()

    def by_torch() -> None:
        y = x
        for number, block in enumerate(blocks[:num_layers]):
            y = block(y, (cos, sin), cache.layer(number))

    def by_step() -> None:
        y = x[:, 0].clone()
        step.run(y, cache, rows, positions.flatten(), whole_cos, whole_sin, num_layers)

    return measure(by_step), measure(by_torch)


def measure(work: Callable[[], None]) -> float:
    """Seconds that some work takes, the shorter of two times."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
