"""Text that spells a special token is text, for every kind of model.

`tokenizers` and `fastokens` can be told not to look for special tokens in a text, and are. But the
model behind has them in its vocabulary, and some kinds find every word of that: Unigram does, and
BPE if it takes whole words before it merges. To those, special tokens are unknown here.
"""

import secrets

from model.chat.guard import rename_tokens
from shards.disk.json_files import Json

# What hidden tokens are called: no text spells it, as it is drawn when the process begins.
HIDDEN = f"\0{secrets.token_hex(16)} "


def hide_specials(raw: Json) -> Json:
    """A tokenizer.json in which the special tokens that its model would find in a text have
    names that no text spells.

    It gives the ids of the original for all other text; `raw` itself comes back if there is nothing
    to hide.
    """
    found = find_spelled(raw)
    if not found:
        return raw
    names = {token: f"{HIDDEN}{number}" for number, token in enumerate(sorted(found))}
    return rename_tokens(raw, names)


def find_spelled(raw: Json) -> set[str]:
    """The special tokens that the model would find in text that spells them."""
    model = raw["model"]
    specials = list_specials(raw)
    vocab = model.get("vocab", {})
    if isinstance(vocab, list):
        return specials & {piece for piece, _ in vocab}
    # What stands for unknown text does so too where that spells it.
    specials.discard(model.get("unk_token"))
    if model.get("type") == "BPE" and not model.get("ignore_merges"):
        return set()
    return specials & set(vocab)


def list_specials(raw: Json) -> set[str]:
    """The special tokens of a tokenizer."""
    return {token["content"] for token in raw.get("added_tokens", []) if token["special"]}


def find_merged(raw: Json) -> str | None:
    """A special token that a BPE merges out of text, if there is one."""
    specials = list_specials(raw)
    for merge in raw["model"].get("merges") or []:
        merged = "".join(merge.split(" ")) if isinstance(merge, str) else "".join(merge)
        if merged in specials:
            return merged
    return None
