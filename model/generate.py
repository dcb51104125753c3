"""Text from a checkpoint: load_generator(folder).generate("Once upon a time")."""

import logging
import shlex
from pathlib import Path

import torch
from tokenizers import Tokenizer

from model.adapters.parts import Parts, find_parts, load_parts
from model.checkpoints.folder import find_stored_dtype
from model.checkpoints.hub import fetch
from model.checkpoints.hugging_face import read_token_ids
from model.checkpoints.kept_tokenizer import END_OF_TEXT
from model.checkpoints.original import load_seed_model
from model.checkpoints.seal import (
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    CheckpointError,
    is_sealed,
    is_seed_checkpoint,
    read_json,
)
from model.checkpoints.tokenizer import load_tokenizer, splits_special_tokens
from model.config import Kept
from model.decode.generator import Generator
from model.decode.settings import Settings as Settings  # For `complete` and `stream`.
from model.device import choose_device, choose_dtype
from model.narrow import DTYPES, round_weights, widen_layers
from model.steps.cuda import find_graphs
from model.steps.find import find_step

logger = logging.getLogger("velocity")


def load_generator(
    checkpoint_path: str | Path,
    device: str | torch.device | None = None,
    tokenizer_json: str | None = None,
    dtype: Kept | None = None,
    base: Path | None = None,
) -> "Generator":
    """The generator of a checkpoint folder, or of the newest checkpoint in a folder of them.

    `checkpoint_path`, and `base`, may be hf://user/name[@revision]: a model of the Hub, which is
    fetched first.
    Uses a GPU if there is one, with CUDA in bf16 or fp16, with MPS in fp32; a CPU computes in
    fp32. `dtype` is what weights are rounded to and, where that is faster, kept in: less to read is
    less time. `tokenizer_json` is the text of a tokenizer.json for a folder without one, such as
    the original VelocityLM's. `base` is the model that an adapter is for, unless it is where it was
    when the adapter was trained; the adapter is merged into it. Raises CheckpointError if the
    folder is not a checkpoint or damaged.
    """
    parts = find_parts(fetch(checkpoint_path, logger.info), base and fetch(base, logger.info))
    if parts.base is not None:
        logger.warning("velocity: %s", parts.describe())
    folder, words = parts.folder, parts.words
    device = choose_device(device)
    is_seed, is_complete = is_seed_checkpoint(folder), is_sealed(words)
    tokenizer = load_tokenizer(words, is_seed or is_complete, tokenizer_json)
    begins, ends = ([], []) if is_seed else _read_token_ids(parts)
    stored = None if is_seed else find_stored_dtype(parts.weights)
    kept = dtype or choose_kept(device, stored)
    read = choose_read_dtype(device, stored, kept)
    model = load_seed_model(folder, device, read) if is_seed else load_parts(parts, device, read)
    if kept is not None:
        round_weights(model, kept)
    widen_layers(model)
    if is_complete and splits_special_tokens(words):
        logger.warning(
            "velocity: %s: others cannot write %s with this tokenizer (split_special_tokens), as "
            "older releases saved it; for a folder where they can: %s",
            folder / TOKENIZER_CONFIG,
            END_OF_TEXT,
            shlex.join(["velocity", "convert", str(folder), "NEW"]),
        )
    ends = ends or _find_default_end(folder, tokenizer)
    generator = Generator(model, tokenizer, ends, begins[0] if begins else None)
    generator.predictor.step = find_graphs(model) if device.type == "cuda" else find_step(model)
    generator.folder, generator.words, generator.dtype = folder, words, dtype
    if max(generator.num_words, generator.begin + 1) > model.config.num_ids:
        raise CheckpointError(
            f"{folder}: the tokenizer has {generator.num_words} tokens and begins a text with "
            f"token {generator.begin}, the model has {model.config.num_ids}; use the tokenizer "
            "that it was trained with"
        )
    return generator


def choose_kept(device: torch.device, stored: torch.dtype | None) -> Kept | None:
    """On a CPU, weights that are stored narrower than fp32 stay so: nothing is rounded."""
    narrow: dict[torch.dtype, Kept] = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    return narrow.get(stored) if device.type == "cpu" and stored is not None else None


def choose_read_dtype(
    device: torch.device, stored: torch.dtype | None, kept: Kept | None
) -> torch.dtype:
    """What weights are read as, before they are rounded to what is kept.

    Only a CPU computes in something else than it keeps, and reads what is stored so at once.
    """
    wanted = None if kept is None else DTYPES.get(kept)
    if device.type == "cpu":
        return wanted if wanted is not None and wanted == stored else torch.float32
    return wanted or choose_dtype(device)


def _read_token_ids(parts: Parts) -> tuple[list[int], list[int]]:
    """The ids that begin and that end a text, as the folder's configs say; they may say none."""
    folder = parts.holder(CONFIG)
    config, path = read_json(folder / CONFIG), parts.holder(GENERATION_CONFIG) / GENERATION_CONFIG
    generation = read_json(path) if path.is_file() else {}
    try:
        begins = read_token_ids("bos_token_id", generation, config)
        return begins, read_token_ids("eos_token_id", generation, config)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {CONFIG} or {GENERATION_CONFIG}: {error}") from None


def _find_default_end(folder: Path, tokenizer: Tokenizer) -> list[int]:
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    if end_of_text is None:
        raise CheckpointError(
            f"{folder}: what ends a text is unknown: no eos_token_id in {CONFIG} or "
            f"{GENERATION_CONFIG}, and no token {END_OF_TEXT}"
        )
    return [end_of_text]
