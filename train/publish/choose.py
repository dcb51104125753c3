"""Which files of a checkpoint's folder are published: those of its model, and nothing else."""

import re
from collections.abc import Callable
from pathlib import Path

from model.checkpoints.seal import (
    INDEX,
    MODEL_FILES,
    TOKENIZER,
    WEIGHTS,
    CheckpointError,
    check_links,
)
from model.checkpoints.weight_files import find_weight_files

Say = Callable[[str], None]
# Of what is beside a model from elsewhere.
OTHER_FILES = ("special_tokens_map.json", "chat_template.jinja", "tokenizer.model")
# What is named like weights of a model.
LIKE_WEIGHTS = re.compile(r"(pytorch_)?model.*\.(safetensors|bin)(\.index\.json)?")


def choose_files(folder: Path, say: Say) -> dict[str, Path]:
    """The files by name. CheckpointError for what the Hub's readers could not load.

    `say` gets a line about files of weights that belong to no index, as an interrupted download or
    an older save leaves them.
    """
    weights = [path.name for path in find_weight_files(folder)]
    others = [name for name in weights if not name.endswith(".safetensors")]
    if others:
        code = f"AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained('NEW')"
        raise CheckpointError(
            f"{folder}: {others[0]} is no safetensors file, which is what is published; "
            f"transformers makes it one: {code}; copy the tokenizer's files there, too"
        )
    beside = [name for name in MODEL_FILES if name != WEIGHTS] + [*OTHER_FILES]
    names = [*beside, *weights, *([] if weights == [WEIGHTS] else [INDEX])]
    files = {name: folder / name for name in names if (folder / name).is_file()}
    if TOKENIZER not in files:
        raise CheckpointError(
            f"{folder}: no {TOKENIZER}, without which nobody can use the model; put its own there"
        )
    check_links(folder, files)
    stale = sorted(
        path.name
        for path in folder.iterdir()
        if LIKE_WEIGHTS.fullmatch(path.name) and path.name not in files
    )
    if stale:
        say(f"{folder}: left out, as no part of the model: {', '.join(stale)}")
    return files
