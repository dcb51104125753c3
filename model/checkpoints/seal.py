"""Which checkpoint folders are complete: the seal lists a folder's files, sizes and sha256s.

A folder counts as complete once it holds checksums.json, which is written last:

    {"files": {"model.safetensors": {"bytes": 6854577496, "sha256": "9f86d0..."}, ...}}

Nothing here imports torch.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
# An adapter's folder, as peft writes it (model/adapters/), has these in place of weights.
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# A file with all weights, one of several, or that of an adapter.
WEIGHT_FILE = re.compile(r"(adapter_)?model\.safetensors|model-\d+-of-\d+\.safetensors")
INDEX = f"{WEIGHTS}.index.json"
# What older releases of transformers wrote, and the original VelocityLM.
SEED_WEIGHTS = "pytorch_model.bin"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
# Of a model that writes chats.
CHAT_TEMPLATE = "chat_template.jinja"
MODEL_FILES = (CONFIG, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG)
CHECKSUMS = "checksums.json"
# In the folder of checkpoints: which of them has the lowest validation loss.
BEST, BEST_NAME = "best.json", "best"
CHECKPOINT_NAME = r"checkpoint-(\d+)"
# What the trainer puts beside the model; a folder that holds one of them was written by it.
TRAINING_FILES = ("training_state.json", "optimizer.safetensors", "run_config.json")
# A checkpoint's JSON files hold some kilobytes. What is larger is something else, and would take
# many times its size in memory.
MAX_JSON_BYTES = 2**24

# The command line shows on the screen what is logged here.
logger = logging.getLogger("velocity")


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete, damaged or of another architecture."""


@dataclass(frozen=True)
class Sealed:
    """What a seal says about a file."""

    num_bytes: int
    sha256: str


def seal(folder: Path, written: Mapping[str, Sealed] | None = None) -> None:
    """Sync every file in `folder` to disk, then write the list that marks it complete.

    `written` are files that are on disk already and were hashed as they were written.
    """
    temporary = folder / f"{CHECKSUMS}.tmp"
    temporary.touch()
    files = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(CHECKSUMS):
            assert path.is_file(), f"{path} is not a plain file; a checkpoint folder is flat"
            found = (written or {}).get(path.name)
            if found is None:
                sync(path)
                found = Sealed(path.stat().st_size, hash_file(path))
            files[path.name] = {"bytes": found.num_bytes, "sha256": found.sha256}
    temporary.write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    sync(temporary)
    os.replace(temporary, folder / CHECKSUMS)
    sync(folder)


def verify(
    folder: Path, names: Collection[str] | None = None, unread: Collection[str] = ()
) -> None:
    """Check files (all, or `names`) against the seal; CheckpointError names the first fault.

    Of those in `unread` only the size is checked: whoever reads them hashes them meanwhile.
    """
    sealed = read_seal(folder)
    for name in sealed if names is None else names:
        path = folder / name
        if name not in sealed:
            raise CheckpointError(f"{path}: not listed in {CHECKSUMS}, so nothing vouches for it")
        if not path.is_file():
            raise CheckpointError(f"{path}: missing, though {CHECKSUMS} lists it")
        num_bytes, sealed_bytes = path.stat().st_size, sealed[name].num_bytes
        if num_bytes != sealed_bytes:
            raise CheckpointError(
                f"{path}: damaged; {num_bytes:,} bytes, expected {sealed_bytes:,}"
            )
        if name not in unread and hash_file(path) != sealed[name].sha256:
            raise CheckpointError(f"{path}: damaged; its sha256 is not the one in {CHECKSUMS}")


def verify_model(folder: Path) -> None:
    """Check the files of a model against the seal; CheckpointError names the first fault."""
    sealed = read_seal(folder)
    weights = list_weight_files(sealed)
    some = [name for name in (INDEX, ADAPTER_CONFIG) if name in sealed]
    others = [name for name in MODEL_FILES if name != WEIGHTS]
    verify(folder, [*others, *some, *(weights or [WEIGHTS])])


def list_weight_files(names: Iterable[str]) -> list[str]:
    """Which of the names in a seal are those of files with weights, in order."""
    return sorted(name for name in names if WEIGHT_FILE.fullmatch(name))


def hash_weights(sealed: Mapping[str, Sealed]) -> str | None:
    """One sha256 for all weights in a seal; None if it has none.

    It is that of their file; of several, that of what `sha256sum model-*.safetensors` prints.
    """
    names = list_weight_files(sealed)
    return join_hashes({name: sealed[name].sha256 for name in names}) if names else None


def join_hashes(hashes: Mapping[str, str]) -> str:
    """One sha256 for files in their order: that of one, or of what `sha256sum` prints of several.

    >>> join_hashes({"model.safetensors": "9f86d0"})
    '9f86d0'
    """
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in hashes.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def list_checkpoints(folder: Path) -> list[Path]:
    """The sealed folders `checkpoint-<step>` in `folder`, the highest step first."""
    if not folder.is_dir():
        return []
    sealed = {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := re.fullmatch(CHECKPOINT_NAME, path.name)) and is_sealed(path)
    }
    return [sealed[step] for step in sorted(sealed, reverse=True)]


def step_of(folder: Path) -> int | None:
    """The step that a checkpoint's name says, if it is one of a run's.

    >>> step_of(Path("out/checkpoint-500")), step_of(Path("gpt"))
    (500, None)
    """
    match = re.fullmatch(CHECKPOINT_NAME, folder.name)
    return int(match[1]) if match else None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` names: the folder itself, or the newest undamaged one in it.

    `best` in a folder of checkpoints names the one with the lowest validation loss.
    Damaged ones are skipped and reported on stderr. A folder from elsewhere needs no seal and is
    taken as is; one of ours that has lost it is refused. Raises CheckpointError, saying what was
    found, if there is no checkpoint.
    """
    if path.name == BEST_NAME and not path.exists() and (path.parent / BEST).is_file():
        path = path.parent / f"checkpoint-{read_json(path.parent / BEST).get('step')}"
    if _is_checkpoint(path):
        if is_sealed(path):
            _verify_or_offer_another(path)
        elif _was_sealed(path):
            raise CheckpointError(
                f"{path}: a checkpoint without {CHECKSUMS}: it was not written, or not removed, to "
                f"the end; use another one, or copy {', '.join(MODEL_FILES)} to a new folder to "
                "read them unchecked"
            )
        return path
    complete = list_checkpoints(path)
    for folder in complete:
        try:
            verify_model(folder)
        except CheckpointError as error:
            logger.warning("velocity: %s; skipping %s", error, folder.name)
        else:
            return folder
    raise CheckpointError(f"{path}: {_describe(path, complete)}")


def is_sealed(folder: Path) -> bool:
    """Whether the folder was completed by us: by the trainer, `velocity convert` or `export`."""
    return (folder / CHECKSUMS).is_file()


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter, and not the model that it is for."""
    return (folder / ADAPTER_CONFIG).is_file() and not _is_model(folder)


def is_seed_checkpoint(folder: Path) -> bool:
    """Whether the folder holds a checkpoint of the original VelocityLM."""
    files = (folder / SEED_WEIGHTS, folder / CONFIG)
    return all(file.is_file() for file in files) and "model" in read_json(folder / CONFIG)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a checkpoint's JSON file; CheckpointError if there is none."""
    try:
        num_bytes = path.stat().st_size
        if num_bytes > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path}: {num_bytes:,} bytes; expected at most {MAX_JSON_BYTES:,} in a "
                "checkpoint's JSON file"
            )
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected a checkpoint folder") from None
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(f"{path}: JSON nested too deeply; use another checkpoint") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); use another checkpoint") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: a JSON {type(values).__name__}; expected an object")
    return values


def _is_checkpoint(path: Path) -> bool:
    return _is_model(path) or (path / ADAPTER_CONFIG).is_file()


def _is_model(path: Path) -> bool:
    weights = (WEIGHTS, INDEX, SEED_WEIGHTS, f"{SEED_WEIGHTS}.index.json")
    return (path / CONFIG).is_file() and any((path / name).is_file() for name in weights)


def _was_sealed(path: Path) -> bool:
    """Whether a folder without a seal is one of ours: half written, or half removed."""
    is_of_a_run = re.fullmatch(CHECKPOINT_NAME, path.name) and list_checkpoints(path.parent)
    return bool(is_of_a_run) or any((path / name).exists() for name in TRAINING_FILES)


def _verify_or_offer_another(path: Path) -> None:
    try:
        verify_model(path)
    except CheckpointError as error:
        siblings = list_checkpoints(path.parent)
        earlier = siblings[siblings.index(path) + 1 :] if path in siblings else []
        offer = f"; the one before it is {earlier[0]}" if earlier else ""
        raise CheckpointError(f"{error}{offer}") from None


def _describe(path: Path, complete: list[Path]) -> str:
    """Why there is no checkpoint at `path`."""
    if complete:
        return f"all {len(complete)} checkpoints are damaged"
    if not path.is_dir():
        return "no such folder; expected a checkpoint, or the folder of checkpoints"
    names = sorted(child.name for child in path.iterdir())
    found = ", ".join([*names[:5], "..."] if len(names) > 5 else names) or "nothing"
    return (
        f"no checkpoint; expected {CONFIG} and {WEIGHTS}, or checkpoint-<step> folders with "
        f"{CHECKSUMS}, found {found}"
    )


def read_seal(folder: Path) -> dict[str, Sealed]:
    """The sealed files by name; CheckpointError if a name leads out of the folder."""
    path = folder / CHECKSUMS
    files = read_json(path).get("files")
    if not isinstance(files, dict) or not all(
        isinstance(entry, dict)
        and isinstance(entry.get("bytes"), int)
        and isinstance(entry.get("sha256"), str)
        for entry in files.values()
    ):
        raise CheckpointError(f"{path}: not a list of files with bytes and sha256")
    for name in files:
        if not is_plain_name(name):
            raise CheckpointError(f"{path}: {name!r} is not a plain file name")
    return {name: Sealed(entry["bytes"], entry["sha256"]) for name, entry in files.items()}


def is_plain_name(name: str) -> bool:
    r"""Whether a name from a file means a file beside it, and nothing that is elsewhere.

    >>> [is_plain_name(name) for name in ("model.bin", "../model.bin", "a\\b", "..", "")]
    [True, False, False, False, False]
    """
    num_bytes = len(name.encode("utf-8", "replace"))
    is_somewhere = name in (".", "..") or re.search(r"[/\\\0]", name)
    return 0 < num_bytes < 256 and not is_somewhere


def check_links(folder: Path, names: Iterable[str]) -> None:
    """CheckpointError for a link out of a folder whose files are copied, and then given to others.

    The Hub's cache is made of links to files that it keeps beside its snapshots.
    """
    own = folder.resolve()
    roots = [own, *([own.parents[1] / "blobs"] if own.parent.name == "snapshots" else [])]
    for name in names:
        if not any((folder / name).resolve().is_relative_to(root) for root in roots):
            raise CheckpointError(
                f"{folder / name}: a link that leaves the folder, which is not copied; put the "
                "file itself there"
            )


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    if os.name == "nt" and path.is_dir():  # Windows has no handle on a folder to flush.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
