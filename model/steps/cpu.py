"""A few tokens through a model on a CPU by model/step.c, where that is faster than by torch.

A text grows by a token each time all weights have been read. torch's products take a part of what
memory gives, as they are made for many rows, and what is between them takes as long again in a
small model. B rows, T tokens, V vocabulary.
"""

import ctypes
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from model.cache import KVCache, allocate_cache
from model.compiled import find_library, note_fault
from model.config import KEPT, ModelConfig
from model.int8 import Int8Rows
from model.narrow import round_weights
from model.steps.choice import find_choice
from model.transformer import Rotation, Transformer, make_rotation

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
# How many tokens at a time are tried, most first; and on how much of a model.
TOKENS_TRIED = (16, 8, 4, 2, 1)
MAX_TIMED_BYTES = 2**27
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


def find_step(model: Transformer) -> Step | None:
    """What to take few tokens through a model with, timed here; None where torch is faster.

    What was found is kept: the same model is taken through the same way the next time. Also None
    where there is no compiler, where what it makes does not compute as torch does, and for a model
    that is not on a CPU, with norms in fp32.
    """
    norm, library = model.model.norm.weight, find_library()
    if library is None or norm.device.type != "cpu" or norm.dtype != torch.float32:
        return None
    if not is_right(library):
        return None
    step = Step(library, model, 0)
    dtypes = [str(weight.dtype) for weight in (*model.parameters(), *model.buffers())]
    asked = repr((library._name, torch.__version__, torch.get_num_threads(), model.config, dtypes))
    step.max_tokens = find_choice(asked, (*TOKENS_TRIED, 0), lambda: find_most(step, model))
    return step if step.max_tokens else None


def find_most(step: Step, model: Transformer) -> int:
    """The most tokens at a time, of those tried, for which step.c is faster than torch, or 0."""
    for num_tokens in TOKENS_TRIED:
        ours, plain = time_both(step, model, num_tokens)
        if ours < plain:
            return num_tokens
    return 0


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
    rotation = make_rotation(cache.begin(1), config)
    x, tokens = torch.ones(num_tokens, 1, config.hidden_size), torch.zeros(num_tokens, 1).long()
    nowhere, nothing = torch.empty(0).long(), torch.empty(0)

    def by_torch() -> None:
        y = x
        for number, block in enumerate(blocks[:num_layers]):
            y = block(y, rotation, cache.layer(number))

    def by_step() -> None:
        step.run(tokens, cache, nowhere, nothing, num_layers)

    return measure(by_step), measure(by_torch)


def measure(work: Callable[[], None]) -> float:
    """Seconds that some work takes, the shorter of two times."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
