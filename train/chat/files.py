"""What a run on chats puts beside its weights, so that others write chats as it was trained to."""

import hashlib
import json
from collections.abc import Mapping

from model.checkpoints.folder import encode_json
from model.checkpoints.seal import GENERATION_CONFIG, TOKENIZER_CONFIG
from shards.disk.layout import CHAT_TEMPLATE
from shards.mixture.sets import Sets


def add_chat_files(files: Mapping[str, bytes], sets: Sets) -> dict[str, bytes]:
    """A model's files with the template of the run's chats, if it reads some, and what it needs.

    A text ends with the end of a turn as well as with that of a document, and special tokens have
    the names by which the template asks for them. ValueError for a template that is not the one
    with which the set was made.
    """
    found = [source.shards for source in sets.sources if source.shards.manifest.chat]
    if not found:
        return dict(files)
    chat = found[0].manifest.chat
    assert chat is not None
    path = found[0].folder / CHAT_TEMPLATE
    template = path.read_bytes()
    if hashlib.sha256(template).hexdigest() != chat["template_sha256"]:
        raise ValueError(
            f"{path}: is not the template that the set was made with (its sha256 differs from that "
            "in manifest.json); restore it"
        )
    generation = json.loads(files[GENERATION_CONFIG])
    end, turn = generation["eos_token_id"], chat.get("end_of_turn")
    if turn not in (None, end):
        generation["eos_token_id"] = [end, turn]
    tokens = json.loads(files[TOKENIZER_CONFIG]) | chat.get("tokens", {})
    return {
        **files,
        CHAT_TEMPLATE: template,
        GENERATION_CONFIG: encode_json(generation),
        TOKENIZER_CONFIG: encode_json(tokens),
    }
