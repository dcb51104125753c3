"""Special tokens that a tokenizer gets for a set: those that its chat template writes."""

import json
from collections.abc import Sequence
from dataclasses import replace

from prep.tokenizer.choose import TokenizerFile, load
from shards.tokenizer import count_ids


def add_specials(file: TokenizerFile, tokens: Sequence[str]) -> TokenizerFile:
    """The tokenizer with these special tokens, the missing ones numbered after its last.

    ValueError if one is there and no special token, so that text could become it.
    """
    tokenizer = load(file)
    raw = json.loads(file.text)
    added = raw.setdefault("added_tokens", [])
    specials = {entry["content"] for entry in added if entry["special"]}
    missing = [token for token in tokens if token not in specials]
    if not missing:
        return file
    first = count_ids(tokenizer)
    for token in missing:
        if tokenizer.token_to_id(token) is not None:
            raise ValueError(
                f"{file.place}: has {token!r} as a token that text can become, and the chat "
                "template writes it; make it a special token of the tokenizer"
            )
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        number = first + missing.index(token)
        added.append({"id": number, "content": token, **flags, "special": True})
    text = json.dumps(raw, indent=1, ensure_ascii=False) + "\n"
    made = replace(file, text=text)
    found = [load(made).token_to_id(token) for token in missing]
    if found != [*range(first, first + len(missing))]:
        raise ValueError(
            f"{file.place}: its ids have gaps, so the tokens of the chat template get no ids after "
            f"its last ({found}); choose another tokenizer, or add {', '.join(missing)} to it"
        )
    return made
