"""The weights that a folder holds beside those of the model that its config.json describes."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from model.checkpoints.differences import Difference, make_error
from model.checkpoints.seal import CONFIG, CheckpointError
from model.checkpoints.weights import Stored
from model.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"  # Not saved where it is the embedding.
LAYER = re.compile(r"\.layers\.\d+\.")
AGAIN = "download the folder again, with the config.json that came with it"
FOREIGN = "a part that velocity's models do not have; use a program that does, such as transformers"

Shape = tuple[int, ...]


def list_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The shapes of a model's weights by name, in order; each once.

    >>> len(list_shapes(ModelConfig())), list_shapes(ModelConfig())["model.norm.weight"]
    (218, (2048,))
    """
    shapes: dict[str, Shape] = {EMBEDDING: (config.num_ids, config.hidden_size)}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        for name, shape in list_layer_shapes(config).items():
            shapes[f"{prefix}.{name}"] = shape
    shapes["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = shapes[EMBEDDING]
    return shapes


def list_layer_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The shapes of one block's weights."""
    width, inner = config.hidden_size, config.intermediate_size
    heads, kv_heads = (
        n * config.head_size for n in (config.num_attention_heads, config.num_kv_heads)
    )
    return {
        "input_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (heads, width),
        "self_attn.k_proj.weight": (kv_heads, width),
        "self_attn.v_proj.weight": (kv_heads, width),
        "self_attn.o_proj.weight": (width, heads),
        "post_attention_layernorm.weight": (width,),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }


def check_weights(config: ModelConfig, found: Mapping[str, Stored], origin: Path) -> None:
    """CheckpointError, with everything that differs, unless these are the model's weights.

    The head may be there twice: where it is the embedding, too.
    """
    num_layers = config.num_hidden_layers
    expected = num_layers * len(list_layer_shapes(config)) + 2  # The embedding, the last norm.
    # Before as many are listed as the config says.
    if not expected / 2 <= len(found) <= expected * 2:
        raise CheckpointError(
            f"{origin}: holds {len(found):,} weights, but num_hidden_layers in {CONFIG} beside it "
            f"is {num_layers:,}, which takes {expected:,}"
        )
    shapes = list_shapes(config)
    if config.tie_word_embeddings and HEAD in found:
        shapes[HEAD] = shapes[EMBEDDING]
    wrong = [name for name in shapes if name in found and found[name].shape != shapes[name]]
    missing, unknown = (sorted(a.keys() - b.keys()) for a, b in ((shapes, found), (found, shapes)))
    rows = [
        *describe(
            wrong, lambda name: (found[name].shape, shapes[name], advise(name, config, found))
        ),
        *describe(missing, lambda name: ("missing", shapes[name], advise_missing(name))),
        *describe(unknown, lambda name: (found[name].shape, "no such weight", FOREIGN)),
    ]
    if rows:
        raise make_error(origin, rows)


def describe(
    names: Iterable[str], explain: Callable[[str], tuple[object, object, str]]
) -> Iterator[Difference]:
    """A row for each weight, or for the same one of several layers."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(LAYER.sub(".layers.*.", name), []).append(name)
    for name, members in alike.items():
        found, expected, remedy = explain(members[0])
        shown = members[0] if len(members) == 1 else f"{name} ({len(members):,})"
        yield Difference(shown, str(found), str(expected), remedy)


def advise(name: str, config: ModelConfig, found: Mapping[str, Stored]) -> str:
    """What would make a weight of another shape fit: the key of config.json that its rows show."""
    shape = found[name].shape
    if name == EMBEDDING and len(shape) == 2 and shape[1] != config.hidden_size:
        return f"set hidden_size to {shape[1]} in {CONFIG}, if the weights are right"
    if len(shape) != 2 or shape[1] != config.hidden_size:
        return AGAIN
    for part, key, size in (
        ("embed_tokens", "vocab_size", 1),
        ("gate_proj", "intermediate_size", 1),
        ("up_proj", "intermediate_size", 1),
        ("q_proj", "head_dim", config.num_attention_heads),
        ("k_proj", "num_key_value_heads", config.head_size),
        ("v_proj", "num_key_value_heads", config.head_size),
    ):
        if part in name and shape[0] % size == 0:
            return f"set {key} to {shape[0] // size} in {CONFIG}, if the weights are right"
    return AGAIN


def advise_missing(name: str) -> str:
    """What to do about a weight that is not there."""
    if name == HEAD:
        return f"set tie_word_embeddings to true in {CONFIG}, if the embedding is the head"
    return AGAIN
