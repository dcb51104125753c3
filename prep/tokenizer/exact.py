"""Whether the fast encoder can stand in for `tokenizers`: it is tried before the first document.

The texts of that trial are hard to split. Samples of the documents are compared as well, while they
come.
"""

import random
import unicodedata
from collections.abc import Iterator
from importlib import metadata
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

from prep.tokenizer.encoder import Encoder, build_encoder, call_fastokens, call_reference
from prep.tokenizer.gpt2 import build_gpt2_json
from prep.tokenizer.library import LibraryError, catching

FAST, REFERENCE = "fastokens", "tokenizers"
# Of special tokens, and of others, so many are spelled out.
NUM_SPELLED = 2000
NUM_RANDOM = 2000
PIECES = (
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "\u2019s", "'", "''"),
    *(" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", "\xa0", "\u2003", "\u3000", "\x0b", "\x85"),
    *("hello", "Hello", "WORLD", "caf\xe9", "cafe\u0301", "\u4f60\u597d", "\u0440\u0443\u0441"),
    *(
        "0",
        "12345",
        "\u0663",
        "\xb2",
        "3.14",
        "!",
        "...",
        "?!",
        "_",
        "\\",
        "\x00",
        "\x7f",
        "/",
        "//",
    ),
    *("\U0001f600", "\U0001f468\u200d\U0001f469", "\ufeff", "\ufffd", "\uffff", "\U0010ffff"),
    *("\u2581", "<0x41>", "\uff21", "\ufb01", "\u0130", "\u1e9e", "\uac00", "\u1100\u1161"),
)
RUNS = ("a", "ab", "A", " ", "\n", "\t ", "!", "0", "'s", "\xe9", "\u4f60", "\u0e01", "\U0001f600")
SPACES = (" ", "\n", "\t", "\r", "\xa0", "\u3000")


class Choice(NamedTuple):
    """The encoder to use, and why it is not the fastest; None if it is, or if it was asked for."""

    encoder: str
    reason: str | None


def choose_encoder(wanted: str | None, tokenizer_json: str) -> Choice:
    """The encoder that --encoder names, else the fastest that gives this tokenizer's ids.

    Raises ValueError if the one that is asked for does not.
    """
    if wanted == REFERENCE:
        return Choice(REFERENCE, None)
    reason = find_reason(tokenizer_json)
    if reason is None:
        return Choice(FAST, None)
    if wanted is not None:
        raise ValueError(f"--encoder is {wanted}: {reason}; leave the option out")
    return Choice(REFERENCE, reason)


def find_reason(tokenizer_json: str) -> str | None:
    """Why the fast encoder cannot be used, in words; None if it can."""
    try:
        metadata.version(FAST)
    except metadata.PackageNotFoundError:
        return f"{FAST} is not installed"
    if tokenizer_json == build_gpt2_json():  # The tests compare far more than is tried here.
        return None
    try:
        different = find_inexact(build_encoder(tokenizer_json, FAST))
    except LibraryError as error:
        return f"{FAST} cannot encode with this tokenizer ({error})"
    if different is not None:
        return f"{FAST} gives other ids than {REFERENCE} with this tokenizer, for {different!r:.80}"
    return None


def find_inexact(encoder: Encoder) -> str | None:
    """The first of the hard texts of which the encoder gives other ids than the reference."""
    tokens = encoder.reference.get_vocab(with_added_tokens=True)
    texts = list(list_hard_texts(sorted(tokens)))
    with catching():
        found, found_sizes = call_fastokens(encoder.fast, texts)
        ids, sizes = call_reference(encoder.reference, texts)
    if np.array_equal(ids, found) and np.array_equal(sizes, found_sizes):
        return None
    ends, found_ends = np.cumsum(sizes).tolist(), np.cumsum(found_sizes).tolist()
    places = zip(texts, pairwise([0, *ends]), pairwise([0, *found_ends]), strict=True)
    return next(
        text for text, a, b in places if not np.array_equal(ids[slice(*a)], found[slice(*b)])
    )


def list_hard_texts(tokens: list[str]) -> Iterator[str]:
    """Texts on which tokenizers and their copies differ; `tokens` are those of the vocabulary."""
    draw = random.Random(0)
    ascii_characters = [chr(i) for i in range(128)]
    yield from ("", *PIECES)
    yield from map("".join, product(ascii_characters, repeat=2))
    for first in ascii_characters:
        yield "".join(first + second for second in ascii_characters)
    characters = list(choose_characters())
    for start in range(0, len(characters), 256):
        some = characters[start : start + 256]
        yield from ("".join(some), " ".join(some), "a".join(some), "\n".join(some))
    for count in range(1, 5):
        for spaces in map("".join, product(SPACES, repeat=count)):
            yield f"a{spaces}b"
            yield f"!{spaces}"
    for unit in RUNS:
        yield from (unit * count for count in (3, 7, 64, 999, 5000))
    yield from ("7" * count + end for count in range(1, 14) for end in ("", "a", " 8", ",000"))
    yield from spell_tokens(tokens, draw)
    for _ in range(NUM_RANDOM):
        yield "".join(draw.choices(PIECES, k=draw.randrange(1, 20)))
        yield "".join(draw.choices(characters, k=draw.randrange(1, 20)))


def choose_characters() -> Iterator[str]:
    """Some characters of every block, all of the first ones; no surrogates."""
    for code in (*range(0x80, 0x600), *range(0x600, 0x3100, 5), *range(0x3100, 0x40000, 61)):
        if unicodedata.category(chr(code)) != "Cs":
            yield chr(code)


def spell_tokens(tokens: list[str], draw: random.Random) -> Iterator[str]:
    """Texts that spell tokens: those that look special, and some of the others."""
    marked = [token for token in tokens if token[:1] in "<[" and len(token) > 2]
    for token in draw.sample(marked, min(len(marked), NUM_SPELLED)):
        yield from (token, f"x{token}y", f" {token} {token}\n", token[:-1])
    yield from draw.sample(tokens, min(len(tokens), NUM_SPELLED))
