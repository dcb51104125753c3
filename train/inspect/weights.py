"""What the headers of weight files say: names and numbers of tensors, never their values."""

import json
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from model.checkpoints.seal import (
    SEED_WEIGHTS,
    WEIGHTS,
    CheckpointError,
    is_plain_name,
    read_json,
)

INDEX = ".index.json"
# What is stored beside a model's parameters: scales of int8 weights, and tables that are computed.
NO_PARAMETERS = ("_scale", ".inv_freq")
HEAD = "lm_head.weight"


@dataclass
class WeightFiles:
    """The files of a folder's weights; only safetensors say what they hold without being loaded."""

    names: list[str]
    sizes: dict[str, int] = field(default_factory=dict)  # Of each tensor, in numbers.
    dtypes: set[str] = field(default_factory=set)
    num_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    def count_parameters(self, is_tied: bool) -> int:
        """How many parameters there are; a head that is the embedding counts once."""
        return sum(
            size
            for name, size in self.sizes.items()
            if not name.endswith(NO_PARAMETERS) and not (is_tied and name == HEAD)
        )


def find_weights(folder: Path) -> WeightFiles | None:
    """The weights in a folder, whole or in shards; None if there are none."""
    for name in (WEIGHTS, SEED_WEIGHTS):
        if (folder / name).is_file():
            return read_headers(folder, [name])
        if (folder / f"{name}{INDEX}").is_file():
            return read_index(folder, f"{name}{INDEX}")
    return None


def read_index(folder: Path, index: str) -> WeightFiles:
    """The weights that an index says are in several files."""
    try:
        entries = read_json(folder / index).get("weight_map")
    except CheckpointError as error:
        return WeightFiles([index], problems=[str(error)])
    names = sorted({str(name) for name in entries.values()}) if isinstance(entries, dict) else []
    if not names or not all(map(is_plain_name, names)):
        return WeightFiles([index], problems=[f"{index}: not a list of tensors and their files"])
    return read_headers(folder, names)


def read_headers(folder: Path, names: list[str]) -> WeightFiles:
    """What these files say that they hold, and which of them are missing or cut short."""
    found = WeightFiles(names)
    for name in names:
        path = folder / name
        if not path.is_file():
            found.problems.append(f"{name}: missing, though the index lists it")
            continue
        found.num_bytes += path.stat().st_size
        if path.suffix == ".safetensors":
            read_header(path, found)
        elif not zipfile.is_zipfile(path) and not _is_pickle(path):
            found.problems.append(f"{name}: neither a zip file nor a pickle; it may be cut short")
    return found


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def read_header(path: Path, found: WeightFiles) -> None:
    """Add what a safetensors file says that it holds."""
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118, as it is no dict.
                piece = file.get_slice(name)
                found.sizes[name] = math.prod(piece.get_shape())
                found.dtypes.add(str(piece.get_dtype()))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        found.problems.append(f"{path.name}: damaged or cut short ({error})")
