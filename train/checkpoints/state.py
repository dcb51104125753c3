"""A run's state besides the model: what a checkpoint keeps so that resuming is exact.

    optimizer.safetensors    what the optimizer keeps, by the parameters' names: AdamW's moments and
                             step counts, Muon's momentum
    training_state.json      step, samples consumed, history, the sets, and the parts
    run_config.json          the settings

The parts are whatever else has a state: the loss scaler, the count of skipped steps. train/run.py
names them, and a new one is a line there. There is no other state: the data order is arithmetic,
the learning rate a function of the step, and nothing in the model is random. torch's generator is
saved all the same.
"""

import json
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shards.disk.json_files import Json
from train.checkpoints.position import RUN_CONFIG, TRAINING_STATE, Position
from train.config import Config
from train.settings import config_to_dict
from train.step.optimizer import make_moments

GENERATOR = "generator"


class Part(Protocol):
    """Something with a state of plain data, as torch's GradScaler has."""

    def state_dict(self) -> dict[str, Any]:
        """Its state, as JSON can hold it; {} if it has none."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take over such a state."""


# By their keys in training_state.json.
Parts = Mapping[str, Part]


def describe_state(config: Config, position: Position, parts: Parts) -> dict[str, bytes]:
    """The JSON files of a run's state, by name."""
    state = position.describe() | {"torch": torch.__version__}
    state |= {key: part.state_dict() for key, part in parts.items()}
    return {TRAINING_STATE: encode_json(state), RUN_CONFIG: encode_json(config_to_dict(config))}


def encode_json(value: Any) -> bytes:
    """Plain data as the text of a JSON file."""
    return (json.dumps(value, indent=1) + "\n").encode()


def collect_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What optimizer.safetensors holds: `<parameter>.<moment>`, and torch's generator.

    Before the first update, which FP16 may skip for some steps, the moments are zeros.
    """
    if not optimizer.state:
        make_moments(optimizer)
    tensors = {GENERATOR: torch.get_rng_state()}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # An adapter's base.
            continue
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}.{key}"] = value
    return tensors


def restore_parts(state: Json, parts: Parts) -> None:
    """Give each part its state; one that the checkpoint does not know stays as it is."""
    for key, part in parts.items():
        if state.get(key):
            part.load_state_dict(state[key])
