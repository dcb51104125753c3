"""Reads the checkpoints of the original VelocityLM: pytorch_model.bin and its own config.json.

Its weights have the same names as ours; its config.json holds all settings of the run, the model's
in section "model".
"""

from pathlib import Path
from typing import Any

import torch

from model.checkpoints.folder import build_model
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


def load_seed_model(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Transformer:
    """The model of an original checkpoint; CheckpointError, naming the file, if it is not one."""
    config = _read_config(folder / CONFIG)
    return build_model(config, [folder / SEED_WEIGHTS], device, dtype)


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
