"""A checkpoint as exports need it: its model in fp32 on the CPU, its tokenizer, and its tokens."""

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from model.adapters.parts import Parts, find_parts, load_parts
from model.checkpoints.folder import encode_json
from model.checkpoints.hugging_face import Json, read_token_ids
from model.checkpoints.kept_tokenizer import END_OF_TEXT
from model.checkpoints.seal import (
    CONFIG,
    GENERATION_CONFIG,
    CheckpointError,
    check_links,
    is_sealed,
    is_seed_checkpoint,
    list_weight_files,
    read_json,
    read_seal,
)
from model.checkpoints.tokenizer import load_tokenizer
from model.config import ModelConfig
from model.transformer import Transformer

# What a folder keeps beside config.json and the weights, where it is there.
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Source:
    """What is exported."""

    parts: Parts
    model: Transformer
    # As sampling loads it: `encode(text).ids` are the model's input.
    tokenizer: Tokenizer
    # The ids that end a text; at least one.
    ends: Sequence[int]
    # What stands before a text, and whether the tokenizer puts it there.
    begin: int
    adds_begin: bool

    @property
    def folder(self) -> Path:
        """The checkpoint's folder."""
        return self.parts.folder

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.model.config

    @property
    def num_words(self) -> int:
        """Rows of the embedding that stand for a token; the ones after them are padding."""
        return 1 + max(self.tokenizer.get_vocab().values())

    @cached_property
    def tokenizer_json(self) -> dict[str, Any]:
        """The tokenizer with all that the folder's configs say of it."""
        content: dict[str, Any] = json.loads(self.tokenizer.to_str())
        return content

    @torch.inference_mode()
    def compute(self, tokens: Tensor) -> Tensor:
        """The checkpoint's own logits (1, T, V) of tokens (1, T)."""
        logits: Tensor = self.model(tokens)
        return logits[..., : self.num_words]

    def describe(self) -> dict[str, Any]:
        """Which checkpoint it is, for a certificate."""
        known = read_seal(self.folder) if is_sealed(self.folder) else {}
        return {
            "checkpoint": self.folder.name,
            "sha256": {name: known[name].sha256 for name in list_weight_files(known)},
            "parameters": self.config.num_parameters(),
            **({"base": self.parts.base.name} if self.parts.base else {}),
        }

    @property
    def config_json(self) -> bytes:
        """The folder's config.json, with as many ids as the model has: an adapter may add some."""
        path = self.parts.holder(CONFIG) / CONFIG
        values = read_json(path)
        if values["vocab_size"] == self.config.num_ids:
            return path.read_bytes()
        return encode_json(values | {"vocab_size": self.config.num_ids})

    def copy_files(self, out: Path) -> None:
        """Copy what a folder keeps beside config.json and the weights."""
        for name in COPIED:
            path = self.parts.holder(name) / name
            if path.is_file():
                shutil.copyfile(path, out / name)


def open_source(ckpt: Path, base: Path | None = None) -> Source:
    """The newest checkpoint that `ckpt` names; CheckpointError if it cannot be exported.

    An adapter is merged into the model that it is for, which may be named.
    """
    parts = find_parts(ckpt, base)
    folder = parts.folder
    config = read_json(parts.holder(CONFIG) / CONFIG)
    if config.get("quantization_config") is not None:
        raise CheckpointError(
            f"{folder}: its weights are quantized already; export the checkpoint it was made from"
        )
    if is_seed_checkpoint(folder):
        command = shlex.join(["velocity", "convert", str(folder), "NEW"])
        raise CheckpointError(f"{folder}: of the original VelocityLM; first convert it: {command}")
    for name in COPIED:
        check_links(parts.holder(name), [name])
    tokenizer = load_tokenizer(parts.words, is_sealed(parts.words))
    model = load_parts(parts, "cpu", torch.float32).eval()
    path = parts.holder(GENERATION_CONFIG) / GENERATION_CONFIG
    generation: Json = read_json(path) if path.is_file() else {}
    begins, ends = (
        read_token_ids(f"{name}_token_id", generation, config) for name in ("bos", "eos")
    )
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    if not ends:
        if end_of_text is None:
            raise CheckpointError(f"{folder}: no eos_token_id in {CONFIG} says what ends a text")
        ends = [end_of_text]
    added = find_added(tokenizer)
    if added and len(added) > 1:
        raise CheckpointError(
            f"{folder}: its tokenizer puts tokens {added} around a text; expected at most one, "
            "before it"
        )
    begin = added[0] if added else (begins or ends)[0]
    largest, num_ids = max(*tokenizer.get_vocab().values(), *ends, begin), model.config.num_ids
    if largest >= num_ids:
        raise CheckpointError(
            f"{folder}: its tokenizer and its configs name ids up to {largest}, and the model has "
            f"{num_ids}; use the tokenizer and the configs that it was trained with"
        )
    return Source(parts, model, tokenizer, ends, begin, bool(added))


def find_added(tokenizer: Tokenizer) -> list[int]:
    """The tokens that a tokenizer puts around each text."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=adds).ids for adds in (False, True))
    added = len(whole) - len(plain)
    # One before the text is what others can do as well; anything else is shown as it is.
    return whole[:added] if whole[added:] == plain else [*whole, -1]
