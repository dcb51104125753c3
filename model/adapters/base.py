"""Which model an adapter is for: found where its folder says, and recognized by its weights.

adapter_config.json names a base, in the words of whoever trained the adapter: a folder of theirs,
or a model of the Hub. Our runs write adapter_base.json beside it, with one sha256 for the base's
weights ({"path": ..., "sha256": ...}). A base with other weights is refused. A path is followed
only with that hash beside it: what is at the path counts only if it is what the adapter was trained
on. So an adapter from elsewhere reads nothing here that the user did not name with --base. Nothing
here imports torch.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from model.checkpoints.seal import (
    ADAPTER_CONFIG,
    CheckpointError,
    find_checkpoint,
    hash_file,
    is_adapter,
    is_sealed,
    join_hashes,
    read_json,
    read_seal,
)
from model.checkpoints.weight_files import find_weight_files

ADAPTER_BASE = "adapter_base.json"
# Of a stranger's path that is shown, or tried.
MAX_NAME = 4096


@dataclass(frozen=True)
class Base:
    """A model that adapters are for."""

    # From the root.
    path: str
    # One for all its weights, as model/checkpoints/seal.py has it.
    sha256: str

    def describe(self) -> bytes:
        """What adapter_base.json holds."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()


def hash_base(folder: Path) -> str:
    """One sha256 for all weights of a model's folder: by its seal, or by reading them.

    Of weights in several files, it is that of what `sha256sum` prints of them.
    """
    sealed = read_seal(folder) if is_sealed(folder) else {}
    hashes = {
        path.name: sealed[path.name].sha256 if path.name in sealed else hash_file(path)
        for path in find_weight_files(folder)
    }
    return join_hashes(hashes)


def read_base(folder: Path) -> Base | None:
    """The base that one of our adapters was trained on; None for an adapter from elsewhere."""
    path = folder / ADAPTER_BASE
    if not path.is_file():
        return None
    values = read_json(path)
    if not all(isinstance(values.get(key), str) for key in ("path", "sha256")):
        raise CheckpointError(f"{path}: expected the path and the sha256 of a base")
    return Base(values["path"], values["sha256"])


def find_recorded(folder: Path, known: Base | None) -> Path:
    """Where the recorded base of one of our adapters is; CheckpointError if it is not there."""
    name = str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path"))[:MAX_NAME]
    if known is None:
        raise CheckpointError(
            f"{folder}: an adapter for {name!r}, which is only loaded if you name it: give --base, "
            "a folder or hf://user/name"
        )
    for place in (Path(known.path), Path(name)):
        if place.is_dir():
            return place
    raise CheckpointError(
        f"{folder}: an adapter for the model in {known.path[:MAX_NAME]}, which is no longer there; "
        "say where it is with --base"
    )


def find_base(folder: Path, named: Path | None) -> Path:
    """The folder of the model that an adapter is for: the one `named`, or the one that is recorded.

    CheckpointError where there is none, or where its weights are not those that the adapter was
    trained on.
    """
    known = read_base(folder)
    where = named or find_recorded(folder, known)
    base = find_checkpoint(where)
    if is_adapter(base):
        raise CheckpointError(
            f"{base}: is an adapter; name the model that it was trained on as --base"
        )
    if known and (found := hash_base(base)) != known.sha256:
        raise CheckpointError(
            f"{base}: not the model that {folder} was trained on: the sha256 of its weights is "
            f"{found[:12]}..., expected {known.sha256[:12]}...; name that model with --base"
        )
    return base
