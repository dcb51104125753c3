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

from model.checkpoints.differences import Difference, DifferentError
from model.config import ROPE_SETTINGS, ModelConfig

Json = dict[str, Any]
# Says in which other form weights are kept; model/checkpoints/int8.py has the one that is read.
QUANTIZATION = "quantization_config"
# Keys that have one value in our models, which is also what it means if they are not there.
FIXED = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    QUANTIZATION: None,
}
REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
FOREIGN = "velocity has no such models; use a program that does, such as transformers"
INCOMPLETE = "use the config.json of a LlamaForCausalLM"
ONE_VALUE = "keep one of the two"
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
    """The architecture that a config.json describes.

    Keys that would change the logits and are not supported here are refused, never ignored: all at
    once, as DifferentError. ValueError for numbers that no model can have.
    """
    found = [
        Difference(key, reprlib.repr(values[key]), repr(ours), FOREIGN)
        for key, ours in FIXED.items()
        # null means the default, which is ours.
        if values.get(key) not in (ours, None)
    ]
    if "model_type" not in values:
        found.append(Difference("model_type", "missing", "'llama'", INCOMPLETE))
    found += [
        Difference(key, "missing", "a number", INCOMPLETE) for key in REQUIRED if key not in values
    ]
    rope = _read_rope(values, found)
    if found:
        raise DifferentError(found)
    is_tied = values.get("tie_word_embeddings")
    return ModelConfig(
        **{key: values[key] for key in REQUIRED},
        initializer_range=values.get("initializer_range", 0.02),
        layer_norm_eps=values.get("rms_norm_eps", 1e-6),
        num_key_value_heads=values.get("num_key_value_heads"),
        head_dim=values.get("head_dim"),
        tie_word_embeddings=False if is_tied is None else is_tied,
        **rope,
    )


def _read_rope(values: Json, differences: list[Difference]) -> Json:
    """The settings of RoPE; places that disagree on one of them are among the differences.

    transformers 5 writes rope_parameters; where rope_scaling, its name in transformers 4, stands
    beside it, that is what transformers 5 reads.
    """
    places = [values]
    for name in ("rope_parameters", "rope_scaling"):
        place = values.get(name) or {}
        if not isinstance(place, dict):
            differences.append(Difference(name, reprlib.repr(place), "an object", INCOMPLETE))
            place = {}
        differences += [  # Positions of their own for some layers.
            Difference(f"{name}.{key}", reprlib.repr(value), "no such key", FOREIGN)
            for key, value in place.items()
            if isinstance(value, dict)
        ]
        places.append(place)
    key = "partial_rotary_factor"
    differences += [
        Difference(key, reprlib.repr(place[key]), "1.0", FOREIGN)
        for place in places
        if place.get(key) not in (1.0, None)
    ]
    rope: Json = places[2] or places[1]
    kind: Any = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_SETTINGS:
        words = ", ".join(ROPE_SETTINGS)
        differences.append(Difference("rope_type", reprlib.repr(kind), f"one of {words}", FOREIGN))
        return {}
    settings: Json = {"rope_theta": 10000.0, "rope_type": kind}
    settings |= _agree("rope_theta", "rope_theta", places[::-1], differences)
    for name in ROPE_SETTINGS[kind]:
        beside = [values] if name == ORIGINAL else []
        settings |= _agree(name, name.removeprefix("rope_"), [rope, *beside], differences)
    if kind == "yarn" and "rope_attention_factor" not in settings:
        settings["rope_attention_factor"] = _read_mscale(rope, differences)
    return settings


def _agree(name: str, key: str, places: Sequence[Json], differences: list[Difference]) -> Json:
    """A setting with what the places that have its key say, if any; they should say the same."""
    found = [place[key] for place in places if place.get(key) is not None]
    differences += [
        Difference(key, reprlib.repr(other), f"{reprlib.repr(found[0])} as elsewhere", ONE_VALUE)
        for other in found[1:]
        if other != found[0]
    ]
    return {name: found[0]} if found else {}


def _read_mscale(rope: Json, differences: list[Difference]) -> float | None:
    """DeepSeek's way to say yarn's attention_factor; None if it is not said so."""
    keys = ("mscale", "mscale_all_dim", "factor")
    numbers = [rope.get(key) for key in keys]
    if not (numbers[0] and numbers[1]):
        return None
    wrong = [key for key in keys if not isinstance(rope.get(key), int | float) or rope[key] <= 0]
    differences += [
        Difference(f"rope_parameters.{key}", reprlib.repr(rope.get(key)), "a number", INCOMPLETE)
        for key in wrong
    ]
    if wrong:
        return None
    up, down, factor = (float(cast(float, number)) for number in numbers)
    return (0.1 * up * math.log(factor) + 1) / (0.1 * down * math.log(factor) + 1)


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
