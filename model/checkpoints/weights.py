"""The weights of a folder, in one file or in several: listed, read one by one, dealt out.

Files that are written have no more than MAX_FILE_BYTES of weights, and the names that transformers
gives them; model/checkpoints/weight_files.py finds them again.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.pickle_file import list_pickle, read_pickle
from model.checkpoints.seal import INDEX, WEIGHTS, CheckpointError
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
    if len(files) == 1:
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
