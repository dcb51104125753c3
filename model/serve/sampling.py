"""How tokens are chosen, as a request says it: OpenAI's fields, and those that vLLM adds to them."""

from typing import Any

from model.decode.settings import Settings
from model.serve.wire.errors import refuse
from model.serve.wire.fields import Fields

MAX_STOPS = 16
MAX_SAMPLES = 128
SEED = 2**63
# They are about accounts, caches and storage, and change nothing in a text.
WITHOUT_EFFECT = (
    "user",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)


def read_settings(fields: Fields) -> Settings:
    """The settings of a request; what it leaves out is OpenAI's default, not `velocity sample`'s."""
    fields.ignore(*WITHOUT_EFFECT)
    values: dict[str, Any] = {
        "temperature": fields.number("temperature", 1.0, 0, 100),
        "top_p": fields.number("top_p", 1.0, 0, 1),
        "top_k": fields.whole("top_k", -1, 2**31) or 0,
        "min_p": fields.number("min_p", 0.0, 0, 1),
        "repetition_penalty": fields.number("repetition_penalty", 1.0, 0, 100),
        "num_return_sequences": fields.whole("n", 1, MAX_SAMPLES) or 1,
        "stop": fields.texts("stop", MAX_STOPS),
        "seed": fields.whole("seed", -SEED, SEED - 1),
    }
    values["top_k"] = max(values["top_k"], 0)  # vLLM has -1 for all, too.
    try:
        return Settings(**values)
    except ValueError as error:
        message = str(error)
        raise refuse(message, message.split()[0] if message.split()[0] in values else None) from None
