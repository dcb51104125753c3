"""`velocity convert`: a checkpoint of an older release or the original VelocityLM as today's."""

import shutil
from pathlib import Path

from model.checkpoints.folder import encode_json, save_model
from model.checkpoints.original import load_seed_model
from model.checkpoints.seal import (
    CHECKSUMS,
    TOKENIZER_CONFIG,
    CheckpointError,
    check_links,
    find_checkpoint,
    is_sealed,
    is_seed_checkpoint,
    read_json,
    seal,
    verify,
)
from model.checkpoints.tokenizer import splits_special_tokens


def convert(path: Path, out: Path, tokenizer_json: str) -> None:
    """Write the checkpoint at `path` as a sealed folder of today's; `out` must be new or empty.

    `tokenizer_json` is for the original VelocityLM's, which have no tokenizer. Of a folder of ours,
    every file is copied as it is, the training state too, except for tokenizer_config.json.
    Raises ValueError if there is nothing to convert.
    """
    folder = find_checkpoint(path)
    expect_new(out)
    if is_seed_checkpoint(folder):
        save_model(out, load_seed_model(folder), tokenizer_json)
    elif not is_sealed(folder):
        raise CheckpointError(
            f"{folder}: neither one of Velocity's checkpoints, which have {CHECKSUMS}, nor one of "
            "the original VelocityLM; models from elsewhere need no conversion"
        )
    elif not splits_special_tokens(folder):
        raise ValueError(f"{folder}: already in the current format; there is nothing to convert")
    else:
        verify(folder)
        _copy(folder, out)
    seal(out)


def expect_new(out: Path) -> None:
    """ValueError unless a folder is new or empty."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: not empty; name a new folder for the converted checkpoint")


def _copy(folder: Path, out: Path) -> None:
    """Copy a checkpoint's files; in tokenizer_config.json, special tokens are no longer split."""
    check_links(folder, [file.name for file in folder.iterdir()])
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.is_file() and file.name not in (CHECKSUMS, TOKENIZER_CONFIG):
            shutil.copyfile(file, out / file.name)
    values = read_json(folder / TOKENIZER_CONFIG)
    del values["split_special_tokens"]
    (out / TOKENIZER_CONFIG).write_bytes(encode_json(values))
