"""Checkpoints whose layers are int8: how a folder says so, and its tensors as in model/int8.py.

The form is `pack-quantized` of the compressed-tensors package: 8 bits, symmetric, one scale for
each output, activations as they are. vLLM and transformers read it. Of a weight (N, K) there are

    NAME.weight_packed  int32 (N, ceil(K / 4)), four numbers in each, the first in its lowest byte,
                        each plus 128
    NAME.weight_scale   floating-point (N, 1)
    NAME.weight_shape   int64 (2,), N and K

so the bytes of a row are its int8 numbers with the highest bit flipped. Embedding, head and norms
are as in any checkpoint.
"""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoints.hugging_face import QUANTIZATION, Json
from model.checkpoints.seal import CheckpointError
from model.int8 import Int8Linear

FLIP = 0x80  # Adds 128 to an int8 number, read as a byte.
PACKED, SCALE, SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"
HEAD = "lm_head"
BLOCKS = "model.layers."
WEIGHTS: Json = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "channel",
    "dynamic": False,
}
# In parts that others may write otherwise without meaning anything else.
EXPECTED: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


def make_quantization_json() -> Json:
    """What config.json says of such a folder."""
    return EXPECTED | {
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": WEIGHTS,
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": [HEAD],
    }


def check_quantization(found: object) -> None:
    """ValueError, saying what, unless a quantization_config describes this form."""
    if not isinstance(found, dict):
        raise ValueError(f"{QUANTIZATION} is {reprlib.repr(found)}; expected an object")
    for key, ours in EXPECTED.items():
        expect(key, found.get(key), ours)
    groups = found.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise ValueError(f"{QUANTIZATION} has config_groups {reprlib.repr(groups)}; expected one")
    [group] = groups.values()
    expect("targets", group.get("targets"), ["Linear"])
    expect("input_activations", group.get("input_activations"), None)
    weights = group.get("weights") or {}
    for key, ours in WEIGHTS.items():
        expect(f"weights.{key}", weights.get(key), ours)
    expect("ignore", found.get("ignore"), [HEAD])


def expect(key: str, found: object, ours: object) -> None:
    """ValueError for a value of a quantization_config that is not the one we read."""
    if found != ours:
        raise ValueError(
            f"{QUANTIZATION} has {key} {reprlib.repr(found)}; velocity reads int8 weights where it "
            f"is {ours!r}, as `velocity export --format int8` writes them"
        )


def pack(rows: Tensor) -> Tensor:
    """int8 rows (N, K) as int32 (N, ceil(K / 4)).

    >>> pack(torch.tensor([[-128, -127, 0, 127]], dtype=torch.int8)).view(torch.uint8).tolist()
    [[0, 1, 128, 255]]
    """
    filled = nn.functional.pad(rows, (0, -rows.shape[1] % 4))
    return (filled.view(torch.uint8) ^ FLIP).contiguous().view(torch.int32)


def packed_shape(num_rows: int, num_columns: int) -> tuple[int, int]:
    """The shape of a weight (N, K) that is packed."""
    return num_rows, -(-num_columns // 4)


def unpack(packed: Tensor, num_columns: int) -> Tensor:
    """The int8 rows (N, K) of int32 (N, ceil(K / 4))."""
    return (packed.contiguous().view(torch.uint8) ^ FLIP).view(torch.int8)[:, :num_columns]


def take_int8(weights: Mapping[str, Tensor], origin: Path) -> dict[str, Tensor]:
    """The weights with each packed one as int8 rows and the scales (N,) of its layer in fp32.

    CheckpointError, naming the file and the weight, if one does not fit, or is not of a block. What
    is not packed stays as it is.
    """
    taken: dict[str, Tensor] = {}
    for name, weight in weights.items():
        layer = name.removesuffix(PACKED)
        if name.endswith((SCALE, SHAPE)) and f"{name.rpartition('.')[0]}{PACKED}" in weights:
            continue
        if layer == name:
            taken[name] = weight
            continue
        scale, shape = weights.get(layer + SCALE), weights.get(layer + SHAPE)
        if scale is None or shape is None or shape.numel() != 2 or BLOCKS not in name:
            raise CheckpointError(
                f"{origin}: {name} is not of a block, or without its {SCALE[1:]} and {SHAPE[1:]}"
            )
        num_rows, num_columns = (int(size) for size in shape)
        fits = weight.dtype == torch.int32 and scale.numel() == num_rows
        if not fits or packed_shape(num_rows, num_columns) != weight.shape:
            raise CheckpointError(
                f"{origin}: {name} has {weight.dtype} of shape {tuple(weight.shape)} and "
                f"{scale.numel()} scales, which do not fit a weight of {num_rows, num_columns}"
            )
        taken[f"{layer}.weight"] = unpack(weight, num_columns)
        taken[layer + SCALE] = scale.flatten().float()
    return taken


def is_int8(name: str, weights: Mapping[str, Tensor]) -> bool:
    """Whether a weight is int8 rows or the scales of such: what keeps its dtype in a model."""
    rows = name.removesuffix("_scale")
    return f"{rows}_scale" in weights and weights[rows].dtype == torch.int8


def use_int8_layers(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Make an `Int8Linear` of each layer of a model on the meta device whose weight is int8."""
    layers = [(name, each) for name, each in model.named_modules() if isinstance(each, nn.Linear)]
    for name, layer in layers:
        rows = weights.get(f"{name}.weight")
        if rows is not None and rows.dtype == torch.int8:
            parent, _, own = name.rpartition(".")
            shape = layer.weight.shape
            meta = Int8Linear(
                torch.empty(shape, dtype=torch.int8, device="meta"),
                torch.empty(shape[0], dtype=torch.float32, device="meta"),
            )
            setattr(model.get_submodule(parent), own, meta)
