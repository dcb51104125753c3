"""The weights of a folder, in one file or in several: found, listed, read one by one, dealt out.

    model.safetensors, or model.safetensors.index.json and the files that it names
    pytorch_model.bin, or pytorch_model.bin.index.json and the files that it names

An index is {"weight_map": {"<weight>": "<file beside it>", ...}}. Files that are written have no
more than MAX_FILE_BYTES of weights, and the names that transformers gives them.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.pickle_file import list_pickle, read_pickle
from model.checkpoints.seal import (
    INDEX,
    SEED_WEIGHTS,
    WEIGHTS,
    CheckpointError,
    is_plain_name,
    read_json,
)
from model.checkpoints.tensor_file import DTYPES_BY_NAME, TensorReader, count_bytes
from model.pages import Pages

# What many tools and file systems can take.
MAX_FILE_BYTES = 5 * 10**9
# Left over from how older releases of transformers computed positions.
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")


@dataclass(frozen=True)
class Stored:
    """What a file says of a weight."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def find_weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights; CheckpointError if one of them is not there."""
    for name in (WEIGHTS, SEED_WEIGHTS):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            return [folder / part for part in read_index(index)]
    raise CheckpointError(
        f"{folder}: no {WEIGHTS}; expected that file, {WEIGHTS}.index.json and what it names, or "
        f"{SEED_WEIGHTS}"
    )


def read_index(index: Path) -> list[str]:
    """The names of the files that an index lists; CheckpointError if they are not beside it."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index}: has no weight_map of weights and their files")
    names = sorted(set(places.values()))
    for name in names:
        if not is_plain_name(name):
            raise CheckpointError(
                f"{index}: {name[:80]!r} is not the name of a file beside it; not followed"
            )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise CheckpointError(
            f"{index}: lists {len(names)} files, of which {len(missing)} are missing"
            f"{f', such as {missing[0][:80]}' if missing else ''}; download the folder again"
        )
    return names


def list_weights(files: Sequence[Path], has_integers: bool = False) -> dict[str, Stored]:
    """What weights the files hold, by their names without what torch.compile and DDP add.

    CheckpointError if a file is damaged, or what it holds is not floating-point numbers, or
    integers where there may be some.
    """
    found: dict[str, Stored] = {}
    for path in files:
        for name, dtype, shape in _list_file(path):
            plain = strip(name)
            if IGNORED.fullmatch(plain):
                continue
            if plain in found:
                raise CheckpointError(
                    f"{path}: two weights are named {plain[:80]}, apart from prefixes"
                )
            is_number = isinstance(dtype, torch.dtype) and (has_integers or dtype.is_floating_point)
            if not isinstance(dtype, torch.dtype) or not is_number:
                raise CheckpointError(
                    f"{path}: {name[:80]} holds {str(dtype)[:40]}; expected floating-point numbers"
                )
            found[plain] = Stored(dtype, shape)
    return found


def read_weights(
    files: Iterable[Path],
    names: Collection[str],
    device: torch.device | str,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The weights of these names, one by one, each on the device and in the dtype, or their own.

    None is in memory twice, apart from a pickled file, of which the rest is while it is read.
    """
    pages = Pages()
    for path in files:
        if path.suffix == ".bin":
            for name, weight in read_pickle(path):
                if strip(name) in names:
                    yield strip(name), weight.to(device, dtype or weight.dtype)
                del weight
            continue
        with TensorReader(path, sealed=None) as reader:
            for entry in reader.entries:
                if strip(entry.name) not in names:
                    reader.skip(entry)
                    continue
                own = DTYPES_BY_NAME[entry.dtype]
                weight = pages.empty(entry.shape, dtype or own, device)
                reader.read_into(weight, own)
                yield strip(entry.name), weight


def deal_weights(
    weights: Mapping[str, Tensor], max_bytes: int | None = None
) -> dict[str, dict[str, Tensor]]:
    """The weights by the files that hold them, in their order; one file if they fit into it.

    A weight that is larger than a file may be has one of its own.
    """
    parts: list[dict[str, Tensor]] = [{}]
    size, most = 0, MAX_FILE_BYTES if max_bytes is None else max_bytes
    for name, weight in weights.items():
        size += count_bytes(weight)
        if parts[-1] and size > most:
            parts.append({})
            size = count_bytes(weight)
        parts[-1][name] = weight
    if len(parts) == 1:
        return {WEIGHTS: parts[0]}
    stem, dot, suffix = WEIGHTS.rpartition(".")
    return {
        f"{stem}-{number:05}-of-{len(parts):05}{dot}{suffix}": part
        for number, part in enumerate(parts, 1)
    }


def make_index(files: Mapping[str, Mapping[str, Tensor]]) -> dict[str, bytes]:
    """The index of weights that were dealt out, by its name; none is needed for a single file."""
    if WEIGHTS in files:
        return {}
    places = {name: file for file, weights in files.items() for name in weights}
    total = sum(count_bytes(weight) for weights in files.values() for weight in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return {INDEX: (json.dumps(index, indent=2) + "\n").encode()}


def strip(name: str) -> str:
    """A weight's name without what torch.compile and DDP add.

    >>> strip("module._orig_mod.model.norm.weight")
    'model.norm.weight'
    """
    return name.replace("_orig_mod.", "").removeprefix("module.")


def _list_file(path: Path) -> Iterator[tuple[str, torch.dtype | str, tuple[int, ...]]]:
    if path.suffix == ".bin":
        for name, (dtype, shape) in list_pickle(path).items():
            yield name, dtype, shape
        return
    with TensorReader(path, sealed=None) as reader:
        for entry in reader.entries:
            yield entry.name, DTYPES_BY_NAME.get(entry.dtype, entry.dtype), entry.shape
