"""What a single token spells: bytes, which need not be whole characters."""

import re
from functools import lru_cache

from tokenizers import Tokenizer

BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
WORD_BEGIN = "\N{LOWER ONE EIGHTH BLOCK}"  # What SentencePiece writes for a space.


@lru_cache(1)
def list_bytes() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for.

    Printable ones of Latin-1 stand for themselves, and the others are numbered from 256 on, as in
    GPT-2's vocabulary.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + n): byte for n, byte in enumerate(others)
    }


class Speller:
    """Spells a tokenizer's tokens one by one, which decoding does not: it drops spaces."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # By itself, or as one of several.
        decoder = tokenizer.decoder
        self._is_byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()
        self._added = {
            id: token.content for id, token in tokenizer.get_added_tokens_decoder().items()
        }

    def spell(self, token: int) -> bytes:
        """The bytes of a token; none for an id that stands for nothing."""
        if token in self._added:
            return self._added[token].encode()
        spelled = self._tokenizer.id_to_token(token) or ""
        letters = list_bytes()
        if self._is_byte_level and letters.keys() >= {*spelled}:
            return bytes(letters[letter] for letter in spelled)
        if found := BYTE_TOKEN.fullmatch(spelled):
            return bytes.fromhex(found[1])
        return spelled.replace(WORD_BEGIN, " ").encode()


def show_bytes(spelled: bytes) -> str:
    r"""Bytes as text; if they are not UTF-8, as OpenAI's API writes them.

    >>> show_bytes(b"caf"), show_bytes(b"\xc3")
    ('caf', 'bytes:\\xc3')
    """
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def count_characters(spelled: bytes) -> int:
    """Characters that begin in these bytes of a text."""
    return sum(byte & 0xC0 != 0x80 for byte in spelled)
