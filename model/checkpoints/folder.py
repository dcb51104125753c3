"""Saves a model as a Hugging Face folder, and loads it with the name of every weight checked.

config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json
...              whatever the trainer adds
checksums.json   the seal (model/checkpoints/seal.py)
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from model.checkpoints.hugging_face import (
    Boundaries,
    Json,
    make_config_json,
    make_generation_config_json,
    read_config_json,
)
from model.checkpoints.int8 import (
    QUANTIZATION,
    check_quantization,
    count_weights,
    is_int8,
    take_int8,
    use_int8_layers,
)
from model.checkpoints.kept_tokenizer import KeptTokenizer, find_end_of_text
from model.checkpoints.seal import (
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHTS,
    CheckpointError,
    Sealed,
    read_json,
)
from model.checkpoints.tensor_file import MAX_HEADER_BYTES, write_tensors
from model.config import ModelConfig
from model.transformer import Transformer

EMBEDDING = "model.embed_tokens.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"
QUERIES = "model.layers.0.self_attn.q_proj.weight"
WEIGHTS_PER_LAYER = 9
HEAD = "lm_head.weight"  # Not saved where it is the embedding.


def save_model(
    folder: Path, model: Transformer, tokenizer_json: str, boundaries: Boundaries | None = None
) -> None:
    """Write the model's five files into `folder`, creating it if needed; call `seal` last.

    `boundaries` are <|endoftext|> after each document unless given.
    """
    boundaries = boundaries or Boundaries(find_end_of_text(tokenizer_json))
    dtype = model.lm_head.weight.dtype
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, name_weights(model))
    for name, content in describe_model(model.config, dtype, tokenizer_json, boundaries).items():
        (folder / name).write_bytes(content)


def name_weights(model: Transformer) -> dict[str, Tensor]:
    """The weights that a checkpoint holds, by their names there: each once."""
    weights = model.state_dict()
    if model.config.tie_word_embeddings:
        del weights[HEAD]
    return weights


def write_weights(folder: Path, weights: Mapping[str, Tensor]) -> Sealed:
    """Write model.safetensors; its size and sha256."""
    return write_tensors(folder / WEIGHTS, weights, metadata={"format": "pt"})


def describe_model(
    config: ModelConfig, dtype: torch.dtype, tokenizer_json: str, boundaries: Boundaries
) -> dict[str, bytes]:
    """The model's four files beside its weights, by name; they are the same at every step."""
    if boundaries.end >= config.num_ids:
        raise ValueError(
            f"the tokenizer ends a document with token {boundaries.end}, but the model's "
            f"vocab_size is {config.num_ids}; save the model with the tokenizer it was trained with"
        )
    tokenizer = KeptTokenizer(tokenizer_json, boundaries)
    dtype_name = str(dtype).removeprefix("torch.")
    tokenizer_config = tokenizer.make_tokenizer_config_json(config.context)
    return {
        TOKENIZER: tokenizer.make_tokenizer_json().encode(),
        CONFIG: encode_json(make_config_json(config, boundaries, dtype_name)),
        TOKENIZER_CONFIG: encode_json(tokenizer_config),
        GENERATION_CONFIG: encode_json(make_generation_config_json(boundaries)),
    }


def load_model(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Transformer:
    """The model written by `save_model`, or by another tool for the same architecture.

    Raises CheckpointError, naming the file and the key or weight, if one is missing, unreadable
    or does not fit this architecture.
    """
    values = read_json(folder / CONFIG)
    quantization = values.pop(QUANTIZATION, None)
    try:
        if quantization is not None:
            check_quantization(quantization)
        config = read_config_json(values)
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    path = folder / WEIGHTS
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            _check_number(config, count_weights(file.keys()), path)
        weights = load_file(path)  # Maps the file into memory, and reads nothing yet.
        if quantization is not None:
            weights = take_int8(weights, path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no {WEIGHTS}; expected all weights in that one file"
        ) from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged ({error})") from None
    return build_model(config, weights, path, device, dtype)


def _check_header(path: Path) -> None:
    """Raise CheckpointError if a safetensors file's header, which it starts with, is too long."""
    with open(path, "rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
    if num_bytes > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: damaged; its header has {num_bytes:,} bytes, expected at most "
            f"{MAX_HEADER_BYTES:,}"
        )


def build_model(
    config: ModelConfig,
    weights: dict[str, Tensor],
    origin: Path,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Transformer:
    """A model with copies of these weights; errors name `origin` as their file."""
    weights = _take_weights(weights, origin)
    # What the config says is compared with the file before a model of that size is made.
    _check_size(config, weights, origin)
    with torch.device("meta"):
        model = Transformer(config)
    use_int8_layers(model, weights)
    head = weights.pop(HEAD, None) if config.tie_word_embeddings else None
    shapes = {name: weight.shape for name, weight in name_weights(model).items()}
    _check_names(weights, shapes, origin)
    for name, shape in shapes.items():
        _check_weight(weights, name, shape, origin)
    if head is not None and not torch.equal(head, weights[EMBEDDING]):
        raise CheckpointError(
            f"{origin}: {HEAD} differs from {EMBEDDING}, but tie_word_embeddings in {CONFIG} "
            "beside it is true"
        )
    copies = {
        # What is int8 was unpacked, and has memory of its own already.
        name: weight.to(device) if is_int8(name, weights) else weight.to(device, dtype, copy=True)
        for name, weight in weights.items()
    }
    model.load_state_dict(copies, strict=False, assign=True)
    model.tie_head()
    return model


def _take_weights(weights: Mapping[str, Tensor], origin: Path) -> dict[str, Tensor]:
    """The weights, if they are numbers, by their names without what torch.compile and DDP add."""
    renamed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        plain = name.replace("_orig_mod.", "").removeprefix("module.")
        if plain in renamed:
            raise CheckpointError(f"{origin}: two weights are named {plain}, apart from prefixes")
        if not weight.is_floating_point() and not is_int8(name, weights):
            raise CheckpointError(
                f"{origin}: {name} holds {weight.dtype}; expected floating-point numbers"
            )
        renamed[plain] = weight
    return renamed


def _check_size(config: ModelConfig, weights: Mapping[str, Tensor], origin: Path) -> None:
    """Raise CheckpointError if the config's sizes are not about those of the weights."""
    _check_number(config, len(weights), origin)
    queries = config.num_attention_heads * config.head_size
    for name, num_rows in (
        (EMBEDDING, config.num_ids),
        (GATE, config.intermediate_size),
        (QUERIES, queries),
    ):
        if name not in weights:
            raise CheckpointError(f"{origin}: missing weight {name}")
        _check_weight(weights, name, (num_rows, config.hidden_size), origin)


def _check_number(config: ModelConfig, num_weights: int, origin: Path) -> None:
    expected = config.num_hidden_layers * WEIGHTS_PER_LAYER + 2  # The embedding, the last norm.
    if not expected / 2 <= num_weights <= expected * 2:
        raise CheckpointError(
            f"{origin}: holds {num_weights:,} weights, but num_hidden_layers in {CONFIG} beside it "
            f"is {config.num_hidden_layers:,}, which takes {expected:,}"
        )


def _check_names(
    weights: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], origin: Path
) -> None:
    """Raise CheckpointError unless these are exactly the model's weights."""
    missing, unknown = shapes.keys() - weights.keys(), weights.keys() - shapes.keys()
    for names, fault in ((missing, "missing weight"), (unknown, "unknown weight")):
        if names:
            raise CheckpointError(
                f"{origin}: {fault} {min(names)} ({len(names)} in all); {CONFIG} beside it "
                f"describes {len(shapes)} weights, the file holds {len(weights)}"
            )


def _check_weight(
    weights: Mapping[str, Tensor], name: str, shape: Sequence[int], origin: Path
) -> None:
    weight = weights[name]
    if weight.shape != tuple(shape):
        raise CheckpointError(
            f"{origin}: {name} has shape {tuple(weight.shape)}; {CONFIG} beside it says "
            f"{tuple(shape)}"
        )


def encode_json(values: Json) -> bytes:
    """One of a checkpoint's JSON files, as people read it."""
    return (json.dumps(values, indent=2) + "\n").encode()
