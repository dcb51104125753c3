"""What single tokens spell: joined, they are the text, whatever kind of tokenizer made them."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from model.serve.texts.spelling import Speller
from tests.tiny import SENTENCES, make_tokenizer


def make_sentencepiece() -> Tokenizer:
    """Like SentencePiece's: words begin with a mark, and bytes that no token has are tokens."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    for letter in "\N{LOWER ONE EIGHTH BLOCK}abcdeghilnorstuw":
        vocab[letter] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def make_sequence() -> Tokenizer:
    """A byte-level one whose decoder is one of several."""
    tokenizer = make_tokenizer()
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel()])
    return tokenizer


@pytest.mark.parametrize("make", [make_tokenizer, make_sequence, make_sentencepiece])
def test_tokens_spell_the_text(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    spell = Speller(tokenizer).spell
    for sentence in SENTENCES:
        ids = tokenizer.encode(sentence).ids
        assert b"".join(map(spell, ids)).decode().removeprefix(" ") == sentence


def test_special_tokens_and_ids_without_a_token_spell_what_they_are() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(["<|a b|>"])
    speller = Speller(tokenizer)
    assert speller.spell(tokenizer.token_to_id("<|a b|>")) == b"<|a b|>"
    assert speller.spell(0) == b"<|endoftext|>"
    assert speller.spell(5000) == b""
