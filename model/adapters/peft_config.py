"""adapter_config.json as peft writes it, and as it is read: unknown keys are refused.

Keys that would change what the adapter computes and are not supported are refused, never ignored.
Nothing here imports torch.
"""

import reprlib
from typing import Any

from model.adapters.config import TARGETS, AdapterConfig
from model.checkpoints.differences import Difference, DifferentError
from model.checkpoints.hugging_face import Json

FOREIGN = "merge it with peft (merge_and_unload), and use the folder that comes out"
# peft's keys that do not affect what a trained adapter computes, or that are read below.
WITHOUT_MEANING = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",  # The rows of a tied head are the embedding's here, always.
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
}
READ = {
    "lora_alpha",
    "peft_type",
    "r",
    "target_modules",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
}
# Keys for which only one value is supported.
FIXED: Json = {"bias": "none", "fan_in_fan_out": False, "task_type": "CAUSAL_LM"}
# Ways to draw an adapter that leave the base's weights as they are; others change them.
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
EMBEDDING, HEAD = "embed_tokens", "lm_head"


def make_peft_config(config: AdapterConfig, base: str, is_tied: bool) -> Json:
    """The keys of adapter_config.json by which peft, vLLM, Ollama and llama.cpp read an adapter.

    `base` is the folder, or the Hub's name, of what the adapter was trained on.
    """
    tokens: Json = {}
    if config.token_ids:
        places = (EMBEDDING,) if is_tied else (EMBEDDING, HEAD)
        tokens = {"trainable_token_indices": {place: [*config.token_ids] for place in places}}
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        # Ollama takes whole numbers only, written as such.
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "revision": None,
        "target_modules": [*config.targets],
        "task_type": "CAUSAL_LM",
        "use_dora": config.kind == "dora",
        "use_rslora": config.is_rank_stabilized,
        **tokens,
    }


def read_peft_config(values: Json) -> AdapterConfig:
    """The adapter that an adapter_config.json describes.

    DifferentError with everything that cannot be computed here, at once; ValueError for numbers
    that no adapter has.
    """
    found: list[Difference] = []

    def expect(key: str, is_right: bool, expected: str) -> None:
        if not is_right:
            shown = "missing" if key not in values else reprlib.repr(values[key])
            found.append(Difference(key, shown, expected, FOREIGN))

    rank, alpha, targets = (values.get(key) for key in ("r", "lora_alpha", "target_modules"))
    expect("peft_type", values.get("peft_type") == "LORA", "'LORA'")
    expect("r", type(rank) is int, "a whole number")
    expect("lora_alpha", type(alpha) in (int, float), "a number")
    is_list = isinstance(targets, list) and all(isinstance(name, str) for name in targets)
    expect("target_modules", targets == "all-linear" or is_list, "a list of names")
    for key, fixed in FIXED.items():
        # task_type says what heads are for; without one it is a model with its own.
        expect(key, values.get(key) in (fixed, None), repr(fixed))
    start = values.get("init_lora_weights", True)
    expect("init_lora_weights", start is None or start in PLAIN_STARTS, "true")
    for key in ("use_dora", "use_rslora"):
        expect(key, values.get(key) in (True, False, None), "true or false")
    known = WITHOUT_MEANING | READ | FIXED.keys() | {"init_lora_weights"}
    for key in sorted(values.keys() - known):
        # A number 0 may be one of several, such as the one layer that an adapter is on.
        expect(key, not values[key] and type(values[key]) is not int, "nothing")
    ids = _read_token_ids(values.get("trainable_token_indices"), found)
    if found:
        raise DifferentError(found)
    names: Any = TARGETS if targets == "all-linear" else targets
    return AdapterConfig(
        "dora" if values.get("use_dora") else "lora",
        int(rank or 0),
        alpha or 0,
        # In the order of a block: peft keeps a set, whose order is another one each time.
        tuple(name for name in TARGETS if name in names) + tuple(sorted({*names} - {*TARGETS})),
        values.get("use_rslora") is True,
        ids,
    )


def _read_token_ids(value: Any, found: list[Difference]) -> tuple[int, ...]:
    """The tokens whose rows an adapter holds; they must be the same for embedding and head."""
    if not value:
        return ()
    places = value if isinstance(value, dict) else {EMBEDDING: value}
    lists = [*places.values()]
    is_right = (
        {EMBEDDING} <= places.keys() <= {EMBEDDING, HEAD}
        and all(isinstance(ids, list) and ids == lists[0] for ids in lists)
        and all(type(token) is int and token >= 0 for token in lists[0])
        and len({*lists[0]}) == len(lists[0])
    )
    if not is_right:
        shown = reprlib.repr(value)
        expected = f"the same ids for {EMBEDDING} and {HEAD}"
        found.append(Difference("trainable_token_indices", shown, expected, FOREIGN))
        return ()
    return tuple(lists[0])
