"""The JSON files that make a checkpoint folder a Hugging Face model, written and read.

Readers fill in missing keys with defaults of their own, often without a warning (a different
rms_norm_eps, an untied head, an end of text that never comes), so every key that matters is
written; when reading, a missing key means what it means to transformers.
"""

import reprlib
from dataclasses import dataclass
from typing import Any

from model.config import ModelConfig

Json = dict[str, Any]


@dataclass(frozen=True)
class Boundaries:
    """The ids between the documents that a model is trained on."""

    # After each document.
    end: int
    # Before each document; None = none.
    begin: int | None = None

    @property
    def first(self) -> int:
        """What stands before a document: the end of the one before it, if nothing else does."""
        return self.end if self.begin is None else self.begin


def make_config_json(config: ModelConfig, boundaries: Boundaries, dtype: str) -> Json:
    """config.json: a LlamaForCausalLM, for transformers 4 and 5, vLLM and llama.cpp's converter.

    No pad_token_id: transformers would freeze that row of the embedding during fine-tuning.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.num_ids,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_attention_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.layer_norm_eps,
        # transformers 5 reads rope_parameters, everyone else rope_theta.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": True,
        "bos_token_id": boundaries.first,
        "eos_token_id": boundaries.end,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def make_generation_config_json(boundaries: Boundaries) -> Json:
    """generation_config.json: the sampling defaults of model/generate.py, for other tools."""
    return {
        "bos_token_id": boundaries.first,
        "eos_token_id": boundaries.end,
        "pad_token_id": boundaries.end,
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 50,
        "top_p": 0.9,
    }


def read_config_json(values: Json) -> ModelConfig:
    """The architecture that a config.json describes; ValueError if it is not ours.

    Keys that would change the logits and are not supported here are refused, never ignored.
    """
    heads = _require(values, "num_attention_heads")
    expected = {
        "model_type": ("llama", None),
        "tie_word_embeddings": (True, False),
        "num_key_value_heads": (heads, heads),
        "hidden_act": ("silu", "silu"),
        "attention_bias": (False, False),
        "mlp_bias": (False, False),
        "quantization_config": (None, None),
    }
    for key, (ours, if_missing) in expected.items():
        found = values.get(key)  # null means the default, too.
        _expect(key, if_missing if found is None else found, ours)
    config = ModelConfig(
        vocab_size=_require(values, "vocab_size"),
        hidden_size=_require(values, "hidden_size"),
        num_hidden_layers=_require(values, "num_hidden_layers"),
        num_attention_heads=heads,
        intermediate_size=_require(values, "intermediate_size"),
        max_position_embeddings=_require(values, "max_position_embeddings"),
        initializer_range=values.get("initializer_range", 0.02),
        layer_norm_eps=values.get("rms_norm_eps", 1e-6),
        rope_theta=_read_rope_theta(values),
    )
    head_size = values.get("head_dim")
    _expect("head_dim", config.head_size if head_size is None else head_size, config.head_size)
    return config


def _read_rope_theta(values: Json) -> float:
    """The rotary base; scaled positions, and places that disagree on the base, are refused.

    transformers 5 writes rope_parameters; where rope_scaling, its name in transformers 4, stands
    beside it, that is what transformers 5 reads.
    """
    places = [values]
    for name in ("rope_scaling", "rope_parameters"):
        rope = values.get(name) or {}
        if not isinstance(rope, dict):
            raise ValueError(f"{name} is {reprlib.repr(rope)}; expected an object")
        for key, value in rope.items():
            if isinstance(value, dict):  # Positions of their own for some layers.
                _expect(f"{name}.{key}", value, None)
        _expect("rope_type", rope.get("rope_type", rope.get("type", "default")), "default")
        places.append(rope)
    for place in places:
        factor = place.get("partial_rotary_factor")
        _expect("partial_rotary_factor", 1.0 if factor is None else factor, 1.0)
    found = [place["rope_theta"] for place in reversed(places) if "rope_theta" in place]
    theta: float = found[0] if found else 10000.0
    for other in found:
        _expect("rope_theta", other, theta)
    return theta


def read_token_ids(key: str, generation: Json, config: Json) -> list[int]:
    """The ids of bos_token_id or eos_token_id: generation_config.json's, else config.json's.

    There may be none. Raises ValueError if they are not ids.
    """
    for values in (generation, config):
        found = values.get(key)
        if found is not None:
            ids = found if isinstance(found, list) else [found]
            if not all(type(token) is int and token >= 0 for token in ids):
                raise ValueError(
                    f"{key} is {reprlib.repr(found)}; expected a token's id, or a list of ids"
                )
            return ids
    return []


def _require(values: Json, key: str) -> Any:
    if key not in values:
        raise ValueError(f"no key {key!r}; expected the config.json of a LlamaForCausalLM")
    return values[key]


def _expect(key: str, found: object, ours: object) -> None:
    if found != ours:
        raise ValueError(
            f"{key} is {reprlib.repr(found)}; velocity's architecture needs {ours!r} here"
        )
