"""Whether a set's ids mean to a folder's model what its own tokenizer's do. Needs no torch."""

from pathlib import Path

from tokenizers import Tokenizer

from model.checkpoints.seal import TOKENIZER, is_sealed
from model.checkpoints.tokenizer import load_tokenizer
from shards.reader import Shards
from shards.screen.names import quote
from shards.tokenizer import count_ids, encode_plainly, load_checked_tokenizer


def count_known_ids(folder: Path, shards: Shards) -> int:
    """How many ids the tokenizer of a folder has, of which those of a set must mean the same.

    The set may have more of them behind: tokens of chats. ValueError if it was made with another
    tokenizer, CheckpointError if the folder has none.
    """
    theirs = load_tokenizer(folder, is_sealed(folder))
    ours = load_checked_tokenizer(shards.folder, shards.manifest)
    if difference := find_difference(theirs, ours, shards):
        advice = f"--tokenizer {quote(str(folder / TOKENIZER))}"
        raise ValueError(
            f"{shards.folder}: its tokenizer is not that of {folder}: {difference}; prepare the "
            f"set with the model's own: velocity prep ... {advice}"
        )
    return count_ids(theirs)


def find_difference(theirs: Tokenizer, ours: Tokenizer, shards: Shards) -> str | None:
    """The first id that has another meaning to one of two tokenizers, or text it cuts otherwise."""
    tokens, words = (
        {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
        for tokenizer in (theirs, ours)
    )
    unlike = [i for i in words.keys() & tokens.keys() if words[i] != tokens[i]]
    if unlike:
        first = min(unlike)
        return f"id {first} is {words[first]!r}, but {tokens[first]!r} there"
    # Else special tokens would be cut out of a text that spells them.
    theirs.encode_special_tokens = True
    for case in shards.manifest.content["tokenizer"]["self_test"]:
        found = encode_plainly(theirs, case["text"])
        if found != case["ids"]:
            return f"{case['text']!r} becomes {case['ids']}, but {found} there"
    return None
