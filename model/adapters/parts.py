"""What a checkpoint consists of: one folder, or an adapter's folder and its base's."""

from dataclasses import dataclass
from pathlib import Path

import torch

from model.adapters.base import find_base
from model.adapters.files import load_adapter
from model.adapters.layers import merge_adapter
from model.checkpoints.folder import load_model
from model.checkpoints.seal import (
    CONFIG,
    TOKENIZER,
    CheckpointError,
    find_checkpoint,
    is_adapter,
    is_seed_checkpoint,
    read_json,
)
from model.transformer import Transformer


@dataclass(frozen=True)
class Parts:
    """A checkpoint's folder, and for an adapter its base."""

    folder: Path
    base: Path | None = None

    @property
    def weights(self) -> Path:
        """The folder of the model's weights, without the adapter."""
        return self.base or self.folder

    def holder(self, name: str) -> Path:
        """The folder whose file of this name is used: the adapter's, else the base's."""
        return self.weights if self.base and not (self.folder / name).is_file() else self.folder

    @property
    def words(self) -> Path:
        """The folder of the tokenizer, and of the chat template."""
        return self.holder(TOKENIZER)

    def describe(self) -> str:
        """What an adapter is merged into, in a line."""
        return f"{self.folder}: an adapter, merged in memory into {self.base}"


def find_parts(path: Path, base: Path | None = None) -> Parts:
    """The checkpoint that `path` names, and for an adapter its base, which may be named.

    CheckpointError if one of them is not there, damaged, or not for the other.
    """
    folder = find_checkpoint(path)
    if not is_adapter(folder):
        return Parts(folder)
    found = find_base(folder, base)
    if is_seed_checkpoint(found) or read_json(found / CONFIG).get("quantization_config"):
        raise CheckpointError(
            f"{found}: adapters need a model in fp32, bf16 or fp16, in the current format; name "
            "one with --base"
        )
    return Parts(folder, found)


def load_parts(
    parts: Parts, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Transformer:
    """The model of a checkpoint; an adapter is merged into it, summed in fp32."""
    model = load_model(parts.weights, device, dtype)
    if parts.base is not None:
        load_adapter(model, parts.folder)
        merge_adapter(model)
    return model
