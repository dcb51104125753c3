"""An adapter's files, as peft writes and reads them.

adapter_config.json          what it is (model/adapters/peft_config.py)
adapter_model.safetensors    its tensors, named `base_model.model.<layer>.lora_A.weight`, ...
adapter_base.json            ours alone: which weights it was trained on (model/adapters/base.py)
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.adapters.base import ADAPTER_BASE, Base
from model.adapters.config import AdapterConfig
from model.adapters.layers import add_adapter, has_adapter
from model.adapters.peft_config import make_peft_config, read_peft_config
from model.checkpoints.compare import describe
from model.checkpoints.differences import explaining, make_error
from model.checkpoints.folder import encode_json, name_weights
from model.checkpoints.seal import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CheckpointError, read_json
from model.checkpoints.weights import deal_weights, list_weights, read_weights
from model.transformer import Transformer

PREFIX = "base_model.model."
OTHER_BASE = "use the base that the adapter was trained on"
UNKNOWN = "a part that velocity's adapters do not have; merge it with peft"


def name_adapter(model: Transformer) -> dict[str, Tensor]:
    """A model's adapter as its file holds it."""
    return {
        PREFIX + name: weight for name, weight in model.named_parameters() if weight.requires_grad
    }


def name_saved(model: Transformer) -> dict[str, Tensor]:
    """What a checkpoint holds of a model, by its names there: an adapter, or all weights."""
    return name_adapter(model) if has_adapter(model) else name_weights(model)


def deal_saved(model: Transformer) -> dict[str, dict[str, Tensor]]:
    """The same, grouped by the files that hold it."""
    saved = name_saved(model)
    return {ADAPTER_WEIGHTS: saved} if has_adapter(model) else deal_weights(saved)


def describe_adapter(
    config: AdapterConfig, base: Base, named: str, is_tied: bool
) -> dict[str, bytes]:
    """An adapter's files beside its tensors, by name.

    `named` is the base as others are to find it.
    """
    values = make_peft_config(config, named, is_tied)
    return {ADAPTER_CONFIG: encode_json(values), ADAPTER_BASE: base.describe()}


def read_adapter_config(folder: Path) -> AdapterConfig:
    """An adapter's config from its folder; CheckpointError for a kind that is not supported."""
    path = folder / ADAPTER_CONFIG
    with explaining(path):
        return read_peft_config(read_json(path))


def load_adapter(model: Transformer, folder: Path) -> None:
    """Put the adapter of a folder on a model; CheckpointError, with all differences, if it is not
    one for this model.
    """
    config, path = read_adapter_config(folder), folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{folder}: has {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}")
    ranks = [s.shape[0] for name, s in list_weights([path]).items() if "lora_A" in name and s.shape]
    if config.rank != max(ranks, default=0):  # Before as much memory is taken as the config says.
        raise CheckpointError(
            f"{path}: holds matrices of rank {max(ranks, default=0)}, but r in {ADAPTER_CONFIG} is "
            f"{config.rank}; download the folder again"
        )
    with torch.random.fork_rng(devices=[]), explaining(path):
        add_adapter(model, config)
    targets = name_adapter(model)
    check_tensors(path, targets)
    with torch.no_grad():
        for name, tensor in read_weights([path], targets.keys(), "cpu", torch.float32):
            targets[name].copy_(tensor)


def check_tensors(path: Path, targets: Mapping[str, Tensor]) -> None:
    """CheckpointError unless a file has tensors of these names and shapes, and no others."""
    found = {name: entry.shape for name, entry in list_weights([path]).items()}
    shapes = {name: tuple(target.shape) for name, target in targets.items()}
    wrong = [name for name in shapes if name in found and found[name] != shapes[name]]
    missing, unknown = (sorted(a.keys() - b.keys()) for a, b in ((shapes, found), (found, shapes)))
    rows = [
        *describe(wrong, lambda name: (found[name], shapes[name], OTHER_BASE)),
        *describe(missing, lambda name: ("missing", shapes[name], OTHER_BASE)),
        *describe(unknown, lambda name: (found[name], "no such tensor", UNKNOWN)),
    ]
    if rows:
        raise make_error(path, rows)
