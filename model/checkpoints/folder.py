"""Saves a model as a Hugging Face folder, and loads it with the name of every weight checked.

config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json
...              whatever the trainer adds
checksums.json   the seal (model/checkpoints/seal.py)
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.compare import EMBEDDING, HEAD, check_weights
from model.checkpoints.differences import explaining
from model.checkpoints.hugging_face import (
    QUANTIZATION,
    Boundaries,
    Json,
    make_config_json,
    make_generation_config_json,
    read_config_json,
)
from model.checkpoints.int8 import (
    check_quantization,
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
    CheckpointError,
    Sealed,
    read_json,
)
from model.checkpoints.tensor_file import write_tensors
from model.checkpoints.weight_files import find_weight_files
from model.checkpoints.weights import (
    Stored,
    deal_weights,
    list_weights,
    make_index,
    read_weights,
)
from model.config import ModelConfig
from model.pages import Pages
from model.transformer import Transformer


def save_model(
    folder: Path,
    model: Transformer,
    tokenizer_json: str,
    boundaries: Boundaries | None = None,
    max_file_bytes: int | None = None,
) -> None:
    """Write the model's five files into `folder`, creating it if needed; call `seal` last.

    `boundaries` are <|endoftext|> after each document unless given. Weights of more than
    `max_file_bytes`, 5 GB unless given, are in several files, and an index names them.
    """
    boundaries = boundaries or Boundaries(find_end_of_text(tokenizer_json))
    dtype = model.lm_head.weight.dtype
    folder.mkdir(parents=True, exist_ok=True)
    files = deal_weights(name_weights(model), max_file_bytes)
    for name, weights in files.items():
        write_weights(folder / name, weights)
    contents = describe_model(model.config, dtype, tokenizer_json, boundaries) | make_index(files)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def name_weights(model: Transformer) -> dict[str, Tensor]:
    """The weights that a checkpoint holds, by their names there: each once."""
    weights = model.state_dict()
    if model.config.tie_word_embeddings:
        del weights[HEAD]
    return weights


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> Sealed:
    """Write a file of weights; its size and sha256."""
    return write_tensors(path, weights, metadata={"format": "pt"})


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

    Raises CheckpointError, naming the file and all keys or weights that do not fit, if something is
    missing, unreadable or of another architecture.
    """
    values = read_json(folder / CONFIG)
    quantization = values.pop(QUANTIZATION, None)
    with explaining(folder / CONFIG):
        if quantization is not None:
            check_quantization(quantization)
        config = read_config_json(values)
    build = build_model if quantization is None else build_int8_model
    return build(config, find_weight_files(folder), device, dtype)


def find_stored_dtype(folder: Path) -> torch.dtype | None:
    """What a folder's embedding is stored in, which stands for all; None where it has none."""
    stored = list_weights(find_weight_files(folder), has_integers=True).get(EMBEDDING)
    return None if stored is None else stored.dtype


def build_model(
    config: ModelConfig, files: Sequence[Path], device: torch.device | str, dtype: torch.dtype
) -> Transformer:
    """A model with the weights of these files; CheckpointError if they are not all of its own."""
    origin, found = name_origin(files), list_weights(files)
    # What the config says is compared with the files before a model of that size is made.
    check_weights(config, found, origin)
    with torch.device("meta"):
        model = Transformer(config)
    weights = dict(read_weights(files, found.keys(), device, dtype))
    head = weights.pop(HEAD, None) if config.tie_word_embeddings else None
    if head is not None and not torch.equal(head, weights[EMBEDDING]):
        raise CheckpointError(
            f"{origin}: {HEAD} differs from {EMBEDDING}, though {CONFIG} says that they are the "
            "same; set tie_word_embeddings to false there"
        )
    del head
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_head()
    return model


def build_int8_model(
    config: ModelConfig, files: Sequence[Path], device: torch.device | str, dtype: torch.dtype
) -> Transformer:
    """The same where layers are int8 and stay so; all else is in the dtype."""
    origin, names = name_origin(files), list_weights(files, has_integers=True).keys()
    weights = take_int8(dict(read_weights(files, names, "cpu")), origin)
    found = {
        name: Stored(weight.dtype, tuple(weight.shape))
        for name, weight in weights.items()
        if weight.dtype == torch.int8 or not is_int8(name, weights)  # No scales.
    }
    check_weights(config, found, origin)
    with torch.device("meta"):
        model = Transformer(config)
    use_int8_layers(model, weights)
    pages = Pages()
    for name, weight in [*weights.items()]:
        kept = weight.dtype if is_int8(name, weights) else dtype
        weights[name] = pages.empty(weight.shape, kept, device).copy_(weight)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_head()
    return model


def name_origin(files: Sequence[Path]) -> Path:
    """What errors name as the place of weights: their file, or the folder of several."""
    return files[0] if len(files) == 1 else files[0].parent


def encode_json(values: Json) -> bytes:
    """One of a checkpoint's JSON files, as people read it."""
    return (json.dumps(values, indent=2) + "\n").encode()
