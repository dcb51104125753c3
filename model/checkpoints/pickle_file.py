"""Pickled state dicts (pytorch_model.bin), read without running any code in the pickle."""

import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.seal import CheckpointError

HEAD = "lm_head.weight"


def list_pickle(path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Types and shapes of the tensors, by name; CheckpointError if the file is none of tensors."""
    # Only the zip format, torch's default since 2020, can be memory-mapped: nothing is read then.
    weights = _load(path, zipfile.is_zipfile(path))
    return {name: (weight.dtype, tuple(weight.shape)) for name, weight in weights.items()}


def read_pickle(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors by name, each with memory of its own, which goes when it is let go."""
    weights = _load(path, mmap=False)
    for name in list(weights):
        weight = weights.pop(name).detach()
        is_whole = weight.untyped_storage().nbytes() == weight.nbytes and weight.is_contiguous()
        yield name, weight if is_whole else weight.clone(memory_format=torch.contiguous_format)


def _load(path: Path, mmap: bool) -> dict[str, Tensor]:
    try:
        _refuse_bomb(path)
        with warnings.catch_warnings(action="ignore"):  # Of odd pickles; the error says enough.
            weights = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: asks to run code when loaded, or is not a pickle of tensors; not loaded"
        ) from None
    except CheckpointError:
        raise
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


def _refuse_bomb(path: Path) -> None:
    """CheckpointError if a zip file is larger inside: torch compresses nothing, but unpacks it."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        num_bytes = sum(entry.file_size for entry in file.infolist())
    if num_bytes > path.stat().st_size:
        raise CheckpointError(
            f"{path}: would be {num_bytes:,} bytes once unpacked, more than the file has; "
            "use another copy"
        )


def _is_plain(weight: Tensor) -> bool:
    """Whether a tensor's numbers are in the file, one after another."""
    return weight.device.type == "cpu" and weight.layout == torch.strided
