"""What a run puts beside its weights so that others write chats as its model was trained to."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from model.checkpoints.chat_template import read_chat_template
from model.checkpoints.folder import describe_model, encode_json
from model.checkpoints.hugging_face import Boundaries, read_token_ids
from model.checkpoints.seal import (
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    CheckpointError,
    is_sealed,
    read_json,
)
from model.checkpoints.tokenizer import load_tokenizer
from model.config import ModelConfig
from shards.disk.layout import CHAT_TEMPLATE, TOKENIZER
from shards.mixture.sets import Sets
from shards.reader import Shards
from shards.screen.lines import Say
from shards.tokenizer import count_ids, load_checked_tokenizer, read_tokenizer_json


@dataclass(frozen=True)
class ChatFormat:
    """How a model's chats are written: a template, and the tokens that it needs."""

    # In Jinja.
    template: str
    # Special tokens by the names by which the template asks for them, such as eos_token.
    tokens: dict[str, str]
    # The ids that end a turn; that of the end of a text may be one of them.
    ends: tuple[int, ...]
    # A tokenizer.json with more tokens than that of the run's sets; None = theirs has all.
    tokenizer_json: str | None = None


def find_chat_format(sets: Sets, before: Path | None, say: Say) -> ChatFormat | None:
    """How a run's model writes chats: as its sets do, else as the folder that it goes on from.

    `before` is that folder: of model.start, or a checkpoint. A set's template that is not the
    folder's takes its place, and `say` is told. None where there is no template. ValueError for one
    that is not the one with which the set was made, CheckpointError for a folder's that cannot be
    read.
    """
    chats = [source.shards for source in sets.sources if source.shards.manifest.chat]
    kept = read_stored_format(before, sets.first) if before else None
    if not chats:
        return kept
    found = read_set_format(chats[0])
    if kept and kept.template != found.template:
        say(
            f"{chats[0].folder}: its chat template is not that of {before}; checkpoints get the "
            "set's, by which the model is trained from now on"
        )
    return found


def read_set_format(shards: Shards) -> ChatFormat:
    """How a set of chats writes them."""
    chat = shards.manifest.chat
    assert chat is not None
    path = shards.folder / CHAT_TEMPLATE
    template = path.read_bytes()
    if hashlib.sha256(template).hexdigest() != chat["template_sha256"]:
        raise ValueError(
            f"{path}: is not the template that the set was made with (its sha256 differs from that "
            "in manifest.json); restore it"
        )
    turn = chat.get("end_of_turn")
    ends = () if turn is None else (turn,)
    return ChatFormat(template.decode("utf-8"), chat.get("tokens", {}), ends)


def read_stored_format(folder: Path, shards: Shards) -> ChatFormat | None:
    """How a model's folder writes chats, if it has a template.

    Its ids are those of the set, which were compared; it may have more, as the tokens of chats are.
    """
    stored = read_chat_template(folder)
    if stored is None:
        return None
    path = folder / GENERATION_CONFIG
    generation = read_json(path) if path.is_file() else {}
    try:
        ends = read_token_ids("eos_token_id", generation, read_json(folder / CONFIG))
    except ValueError as error:
        raise CheckpointError(f"{path if path.is_file() else folder / CONFIG}: {error}") from None
    tokenizer = load_tokenizer(folder, is_sealed(folder))
    ours = load_checked_tokenizer(shards.folder, shards.manifest)
    has_more = count_ids(tokenizer) > count_ids(ours)
    text = str(tokenizer.to_str()) if has_more else None
    return ChatFormat(stored.source, dict(stored.tokens), tuple(ends), text)


def describe_run_model(
    config: ModelConfig, shards: Shards, chat: ChatFormat | None
) -> dict[str, bytes]:
    """The files beside the weights of a run on a set, by name, with what chats are written by.

    A text ends with the end of a turn as well as with that of a document, and special tokens have
    the names by which the template asks for them.
    """
    boundaries = Boundaries(shards.manifest.end_of_text, shards.manifest.begin_of_text)
    text = chat.tokenizer_json if chat else None
    text = text or read_tokenizer_json(shards.folder / TOKENIZER)
    files = describe_model(config, torch.float32, text, boundaries)
    if chat is None:
        return files
    generation = json.loads(files[GENERATION_CONFIG])
    end = generation["eos_token_id"]
    if turns := [turn for turn in chat.ends if turn != end]:
        generation["eos_token_id"] = [end, *turns]
    tokens = json.loads(files[TOKENIZER_CONFIG]) | chat.tokens
    return {
        **files,
        CHAT_TEMPLATE: chat.template.encode("utf-8"),
        GENERATION_CONFIG: encode_json(generation),
        TOKENIZER_CONFIG: encode_json(tokens),
    }
