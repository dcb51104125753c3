"""Reads the checkpoints of the original VelocityLM: pytorch_model.bin and its own config.json.

Its weights have the same names as ours; its config.json holds all settings of the run, the model's
in section "model".
"""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.folder import HEAD, build_model
from model.checkpoints.seal import CONFIG, SEED_WEIGHTS, CheckpointError, read_json
from model.config import ModelConfig
from model.transformer import Transformer

# Keys of its config.json, which are ours; what ours has besides did not exist.
KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "initializer_range",
    "layer_norm_eps",
    "rope_theta",
)


def is_seed_checkpoint(folder: Path) -> bool:
    """Whether the folder holds a checkpoint of the original VelocityLM."""
    files = (folder / SEED_WEIGHTS, folder / CONFIG)
    return all(file.is_file() for file in files) and "model" in read_json(folder / CONFIG)


def load_seed_model(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Transformer:
    """The model of an original checkpoint; CheckpointError, naming the file, if it is not one."""
    config = _read_config(folder / CONFIG)
    weights = _read_weights(folder / SEED_WEIGHTS)
    return build_model(config, weights, folder / SEED_WEIGHTS, device, dtype)


def _read_config(path: Path) -> ModelConfig:
    section: Any = read_json(path).get("model", {})
    if not isinstance(section, dict):
        raise CheckpointError(f"{path}: model is not a section; expected VelocityLM's settings")
    activation = section.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError(
            f"{path}: model.hidden_act is {activation!r}; only 'silu' is supported"
        )
    missing = [name for name in KEYS if name not in section]
    if missing:
        raise CheckpointError(f"{path}: no key model.{missing[0]}; expected VelocityLM's settings")
    try:
        return ModelConfig(**{name: section[name] for name in KEYS})
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled state dict, read without running any code in the pickle."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Of odd pickles; the error says enough.
            # Only the zip format, torch's default since 2020, can be memory-mapped.
            weights = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: asks to run code when loaded, or is not a pickle of tensors; not loaded"
        ) from None
    except Exception as error:  # A damaged pickle goes wrong in any way.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: unreadable ({reason}); use another copy") from None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(weight, Tensor) and _is_plain(weight)
        for name, weight in weights.items()
    ):
        raise CheckpointError(f"{path}: not a state dict; expected names and their tensors")
    # A view may repeat what is stored once, to any size.
    num_bytes = sum(w.numel() * w.element_size() for name, w in weights.items() if name != HEAD)
    if num_bytes > path.stat().st_size:
        raise CheckpointError(
            f"{path}: its tensors take {num_bytes:,} bytes, more than the file has; use another "
            "copy"
        )
    return weights


def _is_plain(weight: Tensor) -> bool:
    """Whether a tensor's numbers are in the file, one after another."""
    return weight.device.type == "cpu" and weight.layout == torch.strided
