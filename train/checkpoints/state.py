"""A run's state besides the model: what a checkpoint keeps so that resuming is exact.

    optimizer.safetensors    Adam's moments and step counts, by the parameters' names
    training_state.json      step, samples consumed, scaler, bad steps, history, dataset_id
    run_config.json          the settings

There is no other state: the data order is arithmetic, the learning rate a function of the step,
and nothing in the model is random. torch's generator is saved all the same.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from shards.disk.json_files import load_json
from train.checkpoints.position import RUN_CONFIG, TRAINING_STATE, Position, read_position
from train.config import Config
from train.settings import config_to_dict
from train.step.bad_steps import BadSteps

OPTIMIZER = "optimizer.safetensors"
GENERATOR = "generator"


def save_state(
    folder: Path,
    config: Config,
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    bad_steps: BadSteps,
) -> None:
    """Write the three files of a run's state into a checkpoint's folder."""
    tensors = collect_moments(model, optimizer)
    tensors[GENERATOR] = torch.get_rng_state()
    save_file(tensors, folder / OPTIMIZER)
    state = {
        "step": position.step,
        "samples_consumed": position.samples_consumed,
        "history": [asdict(stretch) for stretch in position.history],
        "dataset_id": position.dataset_id,
        "scaler": scaler.state_dict(),
        "skips": bad_steps.state_dict(),
        "torch": torch.__version__,
    }
    write_json(folder / TRAINING_STATE, state)
    write_json(folder / RUN_CONFIG, config_to_dict(config))


def write_json(path: Path, value: Any) -> None:
    """Write plain data as JSON."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def collect_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors under `<parameter>.<moment>`, on the CPU."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}.{key}"] = value.detach().cpu().contiguous()
    return tensors


def restore_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    bad_steps: BadSteps,
) -> Position:
    """Restore optimizer, scaler, bad steps and generator; returns how far the run had come."""
    raw = load_json(folder / TRAINING_STATE)
    tensors = load_file(folder / OPTIMIZER)
    torch.set_rng_state(tensors.pop(GENERATOR))
    restore_moments(folder, model, optimizer, tensors)
    scaler.load_state_dict(raw["scaler"] or scaler.state_dict())
    bad_steps.load_state_dict(raw["skips"])
    return read_position(folder)


def restore_moments(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, torch.Tensor],
) -> None:
    """Restore Adam's tensors, each on its parameter's device; ValueError if names do not match."""
    expected = 0
    for name, parameter in model.named_parameters():
        state = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors.get(f"{name}.{key}")
            if value is None:
                raise ValueError(
                    f"{folder / OPTIMIZER}: no {name}.{key}, which the model's optimizer needs; "
                    "the file belongs to another model"
                )
            # A copy: safetensors maps the file, which may be replaced while the run continues.
            state[key] = value.to(parameter.device, copy=True)
            expected += 1
        optimizer.state[parameter] = state
    assert expected == len(tensors), f"{folder / OPTIMIZER} holds more than the optimizer does"
