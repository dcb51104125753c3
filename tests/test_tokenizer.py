"""GPT-2's tokenizer, built from the merge list: token for token what tiktoken gives on any text."""

import hashlib
import random
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import tiktoken
from tokenizers import Tokenizer

from prep import tokenizer as prep_tokenizer
from prep.tokenizer import END_OF_TEXT, VOCAB_SIZE, build_gpt2_json
from tests.tiktoken_gpt2 import make_encoding

SPECIAL = ["<|endoftext|>", "<|endofprompt|>", "<|fim_prefix|>", "<|im_start|>", "<s>", "[PAD]"]
PIECES = [
    *SPECIAL,
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "\u2019s", "'", "''"),
    *(" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u2003", "\u3000", "\x0b", "\x85"),
    *("hello", "Hello", "WORLD", "caf\u00e9", "cafe\u0301", "\u4f60\u597d", "\u0440\u0443\u0441"),
    *("0", "12345", "\u0663", "\u00b2", "3.14", "!", "...", "?!", "_", "\\", "\x00", "\x7f"),
    *("\U0001f600", "\U0001f468\u200d\U0001f469", "\ufeff", "\ufffd", "\uffff", "\U0010ffff"),
]
SURROGATES = range(0xD800, 0xE000)


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    tokenizer = Tokenizer.from_str(build_gpt2_json())
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="module")
def reference() -> tiktoken.Encoding:
    return make_encoding()


def check_parity(ours: Tokenizer, reference: tiktoken.Encoding, texts: list[str]) -> None:
    """Compare the ids of each text, and see that they decode to it."""
    found = check_ids(ours, reference, texts)
    assert ours.decode_batch(found, skip_special_tokens=False) == texts


def check_ids(ours: Tokenizer, reference: tiktoken.Encoding, texts: list[str]) -> list[list[int]]:
    found = ours.encode_batch_fast(texts, add_special_tokens=False)
    expected = reference.encode_ordinary_batch(texts, num_threads=2)
    for text, encoding, ids in zip(texts, found, expected, strict=True):
        assert encoding.ids == ids, ascii(text[:200])
    return expected


def test_every_code_point_alone_after_a_space_and_inside_a_word(
    ours: Tokenizer, reference: tiktoken.Encoding
) -> None:
    every = [chr(i) for i in range(sys.maxunicode + 1) if i not in SURROGATES]
    for start in range(0, len(every), 1 << 16):
        some = every[start : start + (1 << 16)]
        check_ids(ours, reference, ["\n".join(some), " ".join(some), "a".join(some)])


def test_random_texts(ours: Tokenizer, reference: tiktoken.Encoding) -> None:
    draw = random.Random(0)
    texts = ["".join(draw.choices(PIECES, k=draw.randrange(20))) for _ in range(5000)]
    alphabet = [chr(i) for i in range(0x3000) if i not in SURROGATES]
    texts += ["".join(draw.choices(alphabet, k=draw.randrange(40))) for _ in range(3000)]
    texts += ["".join(chr(draw.randrange(32, 127)) for _ in range(60)) for _ in range(3000)]
    check_parity(ours, reference, texts)


@pytest.mark.parametrize("unit", ["a", "ab", " ", "\n", "\t ", "!", "0", "'s", "\u00e9", "\u4f60"])
def test_long_runs_without_spaces(ours: Tokenizer, reference: tiktoken.Encoding, unit: str) -> None:
    run = unit * (100_000 // len(unit))
    check_parity(ours, reference, [run, "x" + run, run + " x"])


def test_a_long_random_word(ours: Tokenizer, reference: tiktoken.Encoding) -> None:
    draw = random.Random(1)
    check_parity(ours, reference, ["".join(draw.choices("abcdefgh", k=100_000))])


def test_text_that_spells_a_special_token_is_text(
    ours: Tokenizer, reference: tiktoken.Encoding
) -> None:
    texts = [*SPECIAL, *(f"before{name}after {name}" for name in SPECIAL), "<|endoftext|>" * 100]
    check_parity(ours, reference, texts)
    assert END_OF_TEXT not in ours.encode("<|endoftext|>").ids
    assert ours.token_to_id("<|endoftext|>") == END_OF_TEXT
    assert ours.decode([END_OF_TEXT], skip_special_tokens=False) == "<|endoftext|>"


def test_known_ids(ours: Tokenizer) -> None:
    assert ours.encode("Hello, world! It's 2019.").ids == [
        15496, 11, 995, 0, 632, 338, 13130, 13,
    ]  # fmt: skip
    assert ours.get_vocab_size() == VOCAB_SIZE


def test_the_file_is_the_same_bytes_every_time() -> None:
    digest = hashlib.sha256(build_gpt2_json().encode("utf-8")).hexdigest()
    assert digest == "fb062c17ac0fc15422b2c99b9eefac544987d0477cc6db3ec37f646323e4e685"


def test_another_merge_list_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "vocab.bpe").write_text("#version: 0.2\na b\n")
    monkeypatch.setattr(prep_tokenizer, "files", lambda _: tmp_path)
    with pytest.raises(ValueError, match=r"vocab.bpe: sha256 \w+, expected 1ce16647\w+; the inst"):
        build_gpt2_json()


def test_the_licence_of_the_merges_comes_along() -> None:
    licence = (files("prep") / "gpt2" / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("Modified MIT License\n\nSoftware Copyright (c) 2019 OpenAI")
