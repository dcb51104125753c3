"""The JSON files that make a checkpoint folder a Hugging Face model, written and read.

Readers fill in missing keys with defaults of their own, often without a warning (a different
rms_norm_eps, an untied head, an end of text that never comes), so every key that matters is
written; when reading, a missing key means what it means to transformers.
"""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from model.config import ROPE_SETTINGS, ModelConfig

Json = dict[str, Any]
# The one setting of RoPE that may also stand beside the others in config.json.
ORIGINAL = "rope_original_max_position_embeddings"


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
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.layer_norm_eps,
        **make_rope_json(config),
        "tie_word_embeddings": config.tie_word_embeddings,
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


def make_rope_json(config: ModelConfig) -> Json:
    """The keys of config.json that say how positions turn.

    transformers 5 reads rope_parameters, others rope_theta and rope_scaling.
    """
    names = [name for name in ROPE_SETTINGS[config.rope_type] if name != ORIGINAL]
    scaling: Json = {"rope_type": config.rope_type}
    scaling |= {name.removeprefix("rope_"): getattr(config, name) for name in names}
    if config.rope_attention_factor is None:
        scaling.pop("attention_factor", None)
    # With this key, transformers 4 takes what max_position_embeddings is of it as yarn's factor.
    is_longer = config.rope_original != config.max_position_embeddings
    if config.rope_type == "llama3" or is_longer:
        scaling["original_max_position_embeddings"] = config.rope_original
    keys: Json = {"rope_theta": config.rope_theta}
    if config.rope_type != "default":
        keys["rope_scaling"] = scaling
    return keys | {"rope_parameters": scaling | {"rope_theta": config.rope_theta}}


def read_config_json(values: Json) -> ModelConfig:
    """The architecture that a config.json describes; ValueError if it is not ours.

    Keys that would change the logits and are not supported here are refused, never ignored.
    """
    expected = {
        "model_type": ("llama", None),
        "hidden_act": ("silu", "silu"),
        "attention_bias": (False, False),
        "mlp_bias": (False, False),
        "quantization_config": (None, None),
    }
    for key, (ours, if_missing) in expected.items():
        found = values.get(key)  # null means the default, too.
        _expect(key, if_missing if found is None else found, ours)
    is_tied = values.get("tie_word_embeddings")
    return ModelConfig(
        vocab_size=_require(values, "vocab_size"),
        hidden_size=_require(values, "hidden_size"),
        num_hidden_layers=_require(values, "num_hidden_layers"),
        num_attention_heads=_require(values, "num_attention_heads"),
        intermediate_size=_require(values, "intermediate_size"),
        max_position_embeddings=_require(values, "max_position_embeddings"),
        initializer_range=values.get("initializer_range", 0.02),
        layer_norm_eps=values.get("rms_norm_eps", 1e-6),
        num_key_value_heads=values.get("num_key_value_heads"),
        head_dim=values.get("head_dim"),
        tie_word_embeddings=False if is_tied is None else is_tied,
        **_read_rope(values),
    )


def _read_rope(values: Json) -> Json:
    """The settings of RoPE; places that disagree on one of them are refused.

    transformers 5 writes rope_parameters; where rope_scaling, its name in transformers 4, stands
    beside it, that is what transformers 5 reads.
    """
    places = [values]
    for name in ("rope_parameters", "rope_scaling"):
        place = values.get(name) or {}
        if not isinstance(place, dict):
            raise ValueError(f"{name} is {reprlib.repr(place)}; expected an object")
        for key, value in place.items():
            if isinstance(value, dict):  # Positions of their own for some layers.
                _expect(f"{name}.{key}", value, None)
        places.append(place)
    for place in places:
        factor = place.get("partial_rotary_factor")
        _expect("partial_rotary_factor", 1.0 if factor is None else factor, 1.0)
    rope: Json = places[2] or places[1]
    kind: Any = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_SETTINGS:
        _expect("rope_type", kind, "default")
    settings: Json = {"rope_theta": _agree("rope_theta", places[::-1], 10000.0), "rope_type": kind}
    for name in ROPE_SETTINGS[kind]:
        key = name.removeprefix("rope_")
        value = _agree(key, (rope, values), None) if name == ORIGINAL else rope.get(key)
        if value is not None:
            settings[name] = value
    if kind == "yarn" and settings.get("rope_attention_factor") is None:
        settings["rope_attention_factor"] = _read_mscale(rope)
    return settings


def _agree(key: str, places: Sequence[Json], default: Any) -> Any:
    """What the places that have a key say; ValueError unless they say the same."""
    found = [place[key] for place in places if place.get(key) is not None]
    for other in found:
        _expect(key, other, found[0])
    return found[0] if found else default


def _read_mscale(rope: Json) -> float | None:
    """DeepSeek's way to say yarn's attention_factor; None if it is not said so."""
    up, down, factor = numbers = [rope.get(key) for key in ("mscale", "mscale_all_dim", "factor")]
    if not (up and down):
        return None
    if not all(isinstance(value, int | float) and value > 0 for value in numbers):
        raise ValueError(
            f"rope_parameters: mscale is {reprlib.repr(up)}, mscale_all_dim {reprlib.repr(down)}, "
            f"factor {reprlib.repr(factor)}; expected numbers above 0"
        )
    stretch = 0.1 * math.log(cast(float, factor))
    return float((up * stretch + 1) / (down * stretch + 1))


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
