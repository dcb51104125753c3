"""Text from a checkpoint: load_generator(folder).generate("Once upon a time")."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer

from model.checkpoints.folder import load_model
from model.checkpoints.hugging_face import END_OF_TEXT
from model.checkpoints.original import is_seed_checkpoint, load_seed_model
from model.checkpoints.seal import TOKENIZER, CheckpointError, find_checkpoint
from model.decode.generator import Generator


def load_generator(
    checkpoint_path: str | Path,
    device: str | torch.device | None = None,
    tokenizer_json: str | None = None,
) -> "Generator":
    """The generator of a checkpoint folder, or of the newest checkpoint in a folder of them.

    Uses a GPU if there is one, in bf16 or fp16; a CPU computes in fp32. `tokenizer_json` is
    the text of a tokenizer.json for a folder without one, such as the original VelocityLM's.
    Raises CheckpointError if the folder is not a checkpoint or is damaged.
    """
    folder = find_checkpoint(Path(checkpoint_path))
    device = _choose_device(device)
    tokenizer = _load_tokenizer(folder, tokenizer_json)
    load = load_seed_model if is_seed_checkpoint(folder) else load_model
    model = load(folder, device, _choose_dtype(device))
    if tokenizer.get_vocab_size() > model.config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the model "
            f"{model.config.vocab_size}; use the tokenizer that it was trained with"
        )
    return Generator(model, tokenizer)


def _choose_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r} is unknown; expected cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: torch sees no GPU; use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device}: torch sees {torch.cuda.device_count()} GPUs, numbered from 0"
        )
    return device


def _choose_dtype(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16


def _load_tokenizer(folder: Path, tokenizer_json: str | None) -> Tokenizer:
    """The folder's tokenizer, else the given one; CheckpointError unless it is byte-level."""
    path = folder / TOKENIZER
    content = path.read_bytes() if path.is_file() else (tokenizer_json or "").encode()
    if not content:
        raise CheckpointError(f"{folder}: no {TOKENIZER}; put the model's tokenizer there")
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # The library raises a bare Exception for any error.
        raise CheckpointError(f"{path}: not a readable tokenizer ({error})") from None
    decoder = (json.loads(content).get("decoder") or {}).get("type")
    if decoder != "ByteLevel" or tokenizer.token_to_id(END_OF_TEXT) is None:
        raise CheckpointError(
            f"{path}: expected a byte-level tokenizer with the token {END_OF_TEXT}, like GPT-2's"
        )
    return tokenizer
