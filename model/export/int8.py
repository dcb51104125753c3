"""A checkpoint folder whose layers are int8: a quarter of fp32's bytes, for sampling and serving.

The layers of the blocks are int8 with a scale for each output. Embedding, head and norms stay in 16
bits: the error of a head in int8 would reach every probability, and rows of the embedding are only
looked up.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.folder import encode_json, load_model, name_weights, write_weights
from model.checkpoints.hugging_face import QUANTIZATION, Json
from model.checkpoints.int8 import (
    BLOCKS,
    PACKED,
    SCALE,
    SHAPE,
    make_quantization_json,
    pack,
)
from model.checkpoints.seal import CONFIG, WEIGHTS
from model.export.certificate import Runtime
from model.export.source import Source
from model.int8 import quantize


def write(source: Source, folder: Path, name: str, dtype: str) -> Path:
    """Write the folder: a checkpoint like the one it is made from, but for its training state."""
    values: Json = json.loads(source.config_json)
    kept = str(values.get("torch_dtype") or values.get("dtype") or "")
    wide = torch.bfloat16 if kept == "bfloat16" else torch.float16
    weights: dict[str, Tensor] = {}
    for key, weight in name_weights(source.model).items():
        layer = key.removesuffix(".weight")
        if key.startswith(BLOCKS) and weight.dim() == 2:
            rows, scale = quantize(weight)
            weights[layer + PACKED] = pack(rows)
            weights[layer + SCALE] = scale[:, None].contiguous()
            weights[layer + SHAPE] = torch.tensor(rows.shape)
        else:
            weights[key] = weight.detach().to(wide).contiguous()
    write_weights(folder / WEIGHTS, weights)
    said = {"torch_dtype": str(wide).removeprefix("torch."), QUANTIZATION: make_quantization_json()}
    values.pop("dtype", None)
    (folder / CONFIG).write_bytes(encode_json(values | said))
    source.copy_files(folder)
    return folder


def open_runtime(source: Source, path: Path, dtype: str) -> Runtime:
    """The folder, loaded as sampling loads it."""
    model = load_model(path).eval()

    @torch.inference_mode()
    def compute(tokens: Tensor) -> Tensor:
        logits: Tensor = model(tokens)
        return logits[..., : source.num_words]

    return Runtime("Velocity, with int8 layers on the CPU", compute)
