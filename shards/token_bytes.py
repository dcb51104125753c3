"""Token ids -> the bytes they stand for, for tokenizers that are byte-level BPE as GPT-2's.

Such a tokenizer writes each byte as one visible character; the bytes of a text are those of its
tokens, one behind the other, whatever the cuts between them.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_token_bytes(tokenizer: "Tokenizer") -> list[bytes]:
    """The bytes of each id; special tokens, such as <|endoftext|>, stand for none.

    Raises ValueError where the vocabulary is not one of byte-level BPE.
    """
    byte_of = map_characters()
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    contents = []
    for i in range(tokenizer.get_vocab_size()):
        symbols = tokenizer.id_to_token(i) or ""
        if i in special:
            symbols = ""
        if not byte_of.keys() >= set(symbols):
            raise ValueError(
                f"the tokenizer's token {i} is {symbols!r}, which stands for no bytes; "
                "expected a byte-level BPE such as GPT-2's"
            )
        contents.append(bytes(map(byte_of.__getitem__, symbols)))
    return contents


def map_characters() -> dict[str, int]:
    """Which character stands for which byte, in the order of GPT-2's first 256 ids.

    Visible characters of Latin-1 stand for themselves; the other 68 bytes are, in order, the
    characters from U+0100 on.

    >>> byte_of = map_characters()
    >>> byte_of["a"], byte_of["\\u0120"], len(byte_of)
    (97, 32, 256)
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(visible))
    return {chr(byte): byte for byte in visible} | {
        chr(0x100 + place): byte for place, byte in enumerate(hidden)
    }


def count_token_bytes(contents: list[bytes]) -> npt.NDArray[np.int64]:
    """How many bytes each id stands for."""
    return np.fromiter(map(len, contents), np.int64, len(contents))


def escape_token(content: bytes) -> str:
    """A token's bytes as text in which nothing is invisible and nothing is lost.

    >>> print(escape_token(b" caf\\xc3\\xa9\\n"), escape_token(b"\\xe2\\x80"))
     café\\n \\xe2\\x80
    """
    return "".join(map(escape_character, content.decode("utf-8", "surrogateescape")))


def escape_character(character: str) -> str:
    """A character, or its escape where it cannot be seen or is half of one.

    >>> escape_character("a"), escape_character("\\t"), escape_character("\\u200b")
    ('a', '\\\\t', '\\\\u200b')
    """
    if 0xDC80 <= ord(character) <= 0xDCFF:  # A byte that is no UTF-8, from surrogateescape.
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character.isprintable() and character != "\\":
        return character
    return character.encode("unicode_escape").decode("ascii")
