"""The files that hold a folder's weights, found by name; nothing in them is read.

    model.safetensors, or model.safetensors.index.json and the files that it names
    pytorch_model.bin, or pytorch_model.bin.index.json and the files that it names

The first of these that is there counts. An index is {"weight_map": {"<weight>": "<file beside it>",
...}}. Nothing here imports torch.
"""

import shlex
from pathlib import Path

from model.checkpoints.seal import (
    SEED_WEIGHTS,
    WEIGHTS,
    CheckpointError,
    is_adapter,
    is_plain_name,
    read_json,
)


def find_weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights; CheckpointError if one of them is not there."""
    for name in (WEIGHTS, SEED_WEIGHTS):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            return [folder / part for part in read_index(index)]
    refuse_adapter(folder)
    raise CheckpointError(
        f"{folder}: no {WEIGHTS}; expected that file, {WEIGHTS}.index.json and what it names, or "
        f"{SEED_WEIGHTS}"
    )


def refuse_adapter(folder: Path) -> None:
    """Raise CheckpointError for an adapter's folder, where a whole model is expected."""
    if is_adapter(folder):
        raise CheckpointError(
            f"{folder}: an adapter, without the weights of the model that it is for; make a plain "
            f"folder of both: velocity merge {shlex.quote(str(folder))} NEW"
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
