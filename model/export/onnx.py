"""ONNX: the graph and its weights, with keys and values as inputs and outputs, for onnxruntime.

Inputs and outputs have the names that transformers.js and Optimum give them, and the folder keeps
config.json and the tokenizer beside the graph:

    input_ids, attention_mask, position_ids, past_key_values.0.key, past_key_values.0.value, ...
    logits, present.0.key, present.0.value, ...
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.seal import CONFIG
from model.export.certificate import Runtime
from model.export.source import Source
from model.export.step import Step, make_example, name_dimensions, run_in_parts

GRAPH = "model.onnx"


def write(source: Source, folder: Path, name: str, dtype: str) -> Path:
    """Write graph, weights and the checkpoint's JSON files into the folder."""
    config = source.config
    step = Step(source.model, source.num_words)
    past, present = (
        [*name_past(name, config.num_hidden_layers)] for name in ("past_key_values", "present")
    )
    with quiet():
        program: Any = torch.onnx.export(
            step,
            make_example(config, torch.float32),
            dynamo=True,
            dynamic_shapes=name_dimensions(config),
            input_names=["input_ids", "attention_mask", "position_ids", *past],
            output_names=["logits", *present],
            verbose=False,
        )
        program.save(folder / GRAPH, external_data=True)
    (folder / CONFIG).write_bytes(source.config_json)
    source.copy_files(folder)
    return folder


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to itself what torch's exporter says of operators that no model of ours has."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def name_past(name: str, num_layers: int) -> Iterator[str]:
    """The names of keys and values, in the order of the graph."""
    for layer in range(num_layers):
        yield f"{name}.{layer}.key"
        yield f"{name}.{layer}.value"


def open_session(path: Path) -> Any:
    """onnxruntime's session of a folder, on the CPU."""
    import onnxruntime

    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path / GRAPH, options, providers=["CPUExecutionProvider"])


def open_runtime(source: Source, path: Path, dtype: str) -> Runtime:
    """onnxruntime, called without a past, with one, and with a single token."""
    session = open_session(path)
    names = [entry.name for entry in session.get_inputs()]

    def step(*inputs: Tensor) -> list[Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feed)]

    def compute(tokens: Tensor) -> Tensor:
        return run_in_parts(step, tokens, source.config, torch.float32)

    return Runtime(f"onnxruntime {version('onnxruntime')} on the CPU", compute)
