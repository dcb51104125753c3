"""The tokenizer that made a set's ids: loading, checking, and the bytes that each id stands for.

Byte-level BPE such as GPT-2's writes each byte as one visible character, so a text's bytes are
the bytes of its tokens in order, wherever the text is cut into tokens.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from shards.disk.json_files import Json
from shards.disk.layout import TOKENIZER
from shards.format import Int64, Manifest
from shards.screen.names import escape_line

# Texts whose ids the manifest records, so that a tokenizer (or a new release of the library) that
# cuts text differently is noticed: contractions, digits, scripts, spaces, a spelled-out special
# token.
SELF_TEST_TEXTS = (
    "Hello, world! It's 2026; we'd rather not.",
    "naïve café 北京 Привет 🙂",
    "  two spaces\n\n\tand tabs   ",
    "<|endoftext|> is text here",
    "def f(x):\n    return x ** 2  # 3.14159",
)


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json so that text that spells out <|endoftext|> stays text.

    The flag is not saved in the file and is lost on pickling, so every process loads it here.
    """
    try:
        return parse_tokenizer(path.read_text(encoding="utf-8"))
    except Exception as error:  # The library raises a bare Exception for any fault in the file.
        raise ValueError(f"{path}: no tokenizer could be read from it ({error})") from None


@lru_cache(maxsize=1)
def parse_tokenizer(tokenizer_json: str) -> Tokenizer:
    """Build the tokenizer from a tokenizer.json's text; cached, as building it takes a while."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    return tokenizer


def count_ids(tokenizer: Tokenizer) -> int:
    """One more than the largest id: ids may be missing below it."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)


def make_self_test(tokenizer: Tokenizer) -> list[Json]:
    """The self-test texts and their ids, for the manifest."""
    return [
        {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids}
        for text in SELF_TEST_TEXTS
    ]


def load_checked_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer:
    """Load a set's tokenizer; ValueError if it fails the manifest's self-test."""
    tokenizer = load_tokenizer(folder / TOKENIZER)
    for case in manifest.content["tokenizer"]["self_test"]:
        found = tokenizer.encode(case["text"], add_special_tokens=False).ids
        if found != case["ids"]:
            raise ValueError(
                f"{folder / TOKENIZER}: {case['text']!r} becomes {found}; expected "
                f"{case['ids']}, as when the set was made; restore the file or the release of "
                "`tokenizers` that made it"
            )
    return tokenizer


def read_token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of each id; empty for special tokens such as <|endoftext|>.

    Raises ValueError if the vocabulary is not that of a byte-level BPE.
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
    """The byte that each character stands for, in the order of GPT-2's first 256 ids.

    Visible Latin-1 characters stand for themselves; the characters from U+0100 on stand, in order,
    for the other 68 bytes.

    >>> byte_of = map_characters()
    >>> byte_of["a"], byte_of["\\u0120"], len(byte_of)
    (97, 32, 256)
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(visible))
    return {chr(byte): byte for byte in visible} | {
        chr(0x100 + place): byte for place, byte in enumerate(hidden)
    }


def count_token_bytes(contents: list[bytes]) -> Int64:
    """The number of bytes of each id."""
    return np.fromiter(map(len, contents), np.int64, len(contents))


def escape_token(content: bytes) -> str:
    """A token's bytes as text in which every character is visible and no byte is lost.

    >>> print(escape_token(b" caf\\xc3\\xa9\\n"), escape_token(b"\\xe2\\x80"))
     café\\n \\xe2\\x80
    """
    return escape_line(content.decode("utf-8", "surrogateescape").replace("\\", "\\\\"))
