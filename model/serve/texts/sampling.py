"""How tokens are chosen, as a request says it: fields of OpenAI, and those that vLLM added."""

import secrets
from dataclasses import dataclass
from typing import Any

from model.decode.generator import Generator
from model.decode.settings import SettingError, Settings
from model.serve.wire.errors import refuse
from model.serve.wire.fields import Fields, show

MAX_STOPS = 16
MAX_SAMPLES = 128
MAX_WORDS = 100
MAX_CHARS = 1000  # Of each of them.
MAX_BIASES = 1024
SEED = 2**63
COUNT = 2**31
# They are about accounts, caches and storage, and change nothing in a text.
WITHOUT_EFFECT = (
    "user",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)
# What requests call settings that have other names here.
NAMES = {"min_new_tokens": "min_tokens", "num_return_sequences": "n"}


@dataclass(frozen=True)
class MaxTokens:
    """How many tokens a request asks for at most, and in which field; None for all that fit."""

    name: str
    value: int | None
    is_default: bool = False  # Whether the request itself does not say so.

    @classmethod
    def read(
        cls, fields: Fields, name: str, lowest: int = 1, default: int | None = None
    ) -> "MaxTokens":
        """What this field says."""
        value = fields.whole(name, lowest, COUNT)
        return cls(name, default if value is None else value, is_default=value is None)


def read_settings(
    fields: Fields, generator: Generator, most: MaxTokens, logprobs: int | None
) -> Settings:
    """The settings of a request; the defaults are OpenAI's, not `velocity sample`'s."""
    fields.ignore(*WITHOUT_EFFECT)
    top_k = fields.whole("top_k", -1, COUNT)
    seed = fields.whole("seed", -SEED, SEED - 1)
    values: dict[str, Any] = {
        "temperature": fields.number("temperature", 1.0, 0, 100),
        "top_p": fields.number("top_p", 1.0, 0, 1),
        "top_k": 0 if top_k in (None, -1) else top_k,  # -1 is vLLM's word for all.
        "min_p": fields.number("min_p", 0.0, 0, 1),
        "typical_p": fields.number("typical_p", 1.0, 0, 1),
        "repetition_penalty": fields.number("repetition_penalty", 1.0, 0, 100),
        "presence_penalty": fields.number("presence_penalty", 0.0, -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", 0.0, -2, 2),
        "no_repeat_ngram_size": fields.whole("no_repeat_ngram_size", 0, COUNT) or 0,
        "max_new_tokens": most.value or generator.context,
        "min_new_tokens": fields.whole("min_tokens", 0, generator.context) or 0,
        "bad_words": fields.texts("bad_words", MAX_WORDS, MAX_CHARS),
        "logit_bias": read_biases(fields, generator.num_words),
        "num_return_sequences": fields.whole("n", 1, MAX_SAMPLES) or 1,
        "stop": fields.texts("stop", MAX_STOPS, MAX_CHARS),
        "seed": secrets.randbits(63) if seed is None else seed,
        "logprobs": logprobs,
    }
    try:
        return Settings(**values)
    except SettingError as error:
        names = NAMES | {"max_new_tokens": most.name}
        shown = [names.get(name, name) for name in error.names]
        raise refuse(error.words.format(*shown), shown[0]) from None


def read_biases(fields: Fields, num_words: int) -> dict[int, float]:
    """What is added to the logits of tokens: an object of their ids, as JSON has them, in text."""
    biases = fields.nested("logit_bias")
    if len(biases.values) > MAX_BIASES:
        raise fields.wrong("logit_bias", len(biases.values), f"at most {MAX_BIASES:,} tokens")
    for name in biases.values:
        if not (name.isascii() and name.isdecimal()) or len(name) > 10 or int(name) >= num_words:
            raise refuse(
                f"logit_bias has {show(name)}; expected ids from 0 to {num_words - 1:,}",
                "logit_bias",
            )
    return {int(name): biases.number(name, 0.0, -100, 100) for name in biases.values}
