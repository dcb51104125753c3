"""GPT-2's tokenizer, built from the merge list: token for token what tiktoken gives on any text."""

import hashlib
import random
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiktoken

from prep.request import ENCODERS
from prep.tokenizer import encoder
from prep.tokenizer import gpt2 as prep_tokenizer
from prep.tokenizer.encoder import Encoder
from prep.tokenizer.gpt2 import END_OF_TEXT, VOCAB_SIZE, build_gpt2_json
from prep.tokenizer.pieces import cut_text
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


@pytest.fixture(scope="module", params=ENCODERS)
def ours(request: pytest.FixtureRequest) -> Encoder:
    """Each of the encoders that prep can use."""
    pytest.importorskip(request.param)
    return Encoder(build_gpt2_json(), request.param)


@pytest.fixture(scope="module")
def reference() -> tiktoken.Encoding:
    return make_encoding()


def check_parity(ours: Encoder, reference: tiktoken.Encoding, texts: list[str]) -> None:
    """Compare the ids of each text, and see that they decode to it."""
    found = check_ids(ours, reference, texts)
    assert ours.reference.decode_batch(found, skip_special_tokens=False) == texts


def check_ids(ours: Encoder, reference: tiktoken.Encoding, texts: list[str]) -> list[list[int]]:
    expected = reference.encode_ordinary_batch(texts, num_threads=2)
    compare_ids(ours, texts, expected)
    return expected


def compare_ids(ours: Encoder, texts: list[str], expected: list[list[int]]) -> None:
    ids, sizes = ours.encode(pa.array(texts, pa.large_string()))
    found = np.split(ids, np.cumsum(sizes)[:-1])
    for text, document, wanted in zip(texts, found, expected, strict=True):
        assert document.tolist() == wanted, ascii(text[:200])


def test_every_code_point_alone_after_a_space_and_inside_a_word(
    reference: tiktoken.Encoding,
) -> None:
    installed = [name for name in ENCODERS if find_spec(name)]
    encoders = [Encoder(build_gpt2_json(), name) for name in installed]
    # Planes 4 to 13 have no character yet and are alike to every tokenizer: a sixteenth of them.
    empty = range(0x40000, 0xE0000)
    every = [
        chr(i)
        for i in range(sys.maxunicode + 1)
        if i not in SURROGATES and (i not in empty or i % 16 == i // 16 % 16)
    ]
    for start in range(0, len(every), 1 << 16):
        some = every[start : start + (1 << 16)]
        texts = ["\n".join(some), " ".join(some), "a".join(some)]
        expected = reference.encode_ordinary_batch(texts, num_threads=2)
        for ours in encoders:
            compare_ids(ours, texts, expected)


def test_random_texts(ours: Encoder, reference: tiktoken.Encoding) -> None:
    draw = random.Random(0)
    texts = ["".join(draw.choices(PIECES, k=draw.randrange(20))) for _ in range(5000)]
    alphabet = [chr(i) for i in range(0x3000) if i not in SURROGATES]
    texts += ["".join(draw.choices(alphabet, k=draw.randrange(40))) for _ in range(3000)]
    texts += ["".join(chr(draw.randrange(32, 127)) for _ in range(60)) for _ in range(3000)]
    check_parity(ours, reference, texts)


@pytest.mark.parametrize("unit", ["a", "ab", " ", "\n", "\t ", "!", "0", "'s", "\u00e9", "\u4f60"])
def test_long_runs_without_spaces(ours: Encoder, reference: tiktoken.Encoding, unit: str) -> None:
    run = unit * (100_000 // len(unit))
    check_parity(ours, reference, [run, "x" + run, run + " x"])


def test_a_long_random_word(ours: Encoder, reference: tiktoken.Encoding) -> None:
    draw = random.Random(1)
    check_parity(ours, reference, ["".join(draw.choices("abcdefgh", k=100_000))])


def test_text_that_spells_a_special_token_is_text(
    ours: Encoder, reference: tiktoken.Encoding
) -> None:
    texts = [*SPECIAL, *(f"before{name}after {name}" for name in SPECIAL), "<|endoftext|>" * 100]
    check_parity(ours, reference, texts)
    assert ours.reference.token_to_id("<|endoftext|>") == END_OF_TEXT
    assert ours.reference.decode([END_OF_TEXT], skip_special_tokens=False) == "<|endoftext|>"


def test_known_ids(ours: Encoder) -> None:
    ids, sizes = ours.encode(pa.array(["Hello, world!", "", " It's 2019."], pa.large_string()))
    assert ids.tolist() == [15496, 11, 995, 0, 632, 338, 13130, 13]
    assert sizes.tolist() == [4, 0, 4]
    assert ours.vocab_size == VOCAB_SIZE


def test_a_slice_of_an_array_is_encoded_as_what_it_shows(ours: Encoder) -> None:
    texts = pa.array(["one", "two two", "three", "four"], pa.large_string())
    assert (
        ours.encode(texts[1:3])[0].tolist()
        == ours.encode(pa.array(texts[1:3].to_pylist(), pa.large_string()))[0].tolist()
    )


PROSE = "It's 3 o'clock, said they; caf\u00e9s 1st \u4f60 \n\n  don't <|endoftext|> \U0001f600 a b "


@pytest.mark.parametrize("piece_bytes", [30, 64, 100, 999])
def test_a_long_text_in_pieces_has_the_ids_of_the_whole(
    ours: Encoder, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    draw = random.Random(2)
    words = PROSE.split(" ")
    texts = [" ".join(draw.choices(words, k=400)) for _ in range(20)]
    texts += ["short", "".join(draw.choices(PIECES, k=800)), "x" * 5000, " a" * 3000]
    alphabets = [
        "ab1 \n'st",
        "abc0123456789",
        "a!? \t\r\n",
        "\u4f60\u597d\u3002 \n\u3000",
        " \u2002\xa0\na\u0301",
    ]
    texts += ["".join(draw.choices(alphabet, k=2000)) for alphabet in alphabets * 8]
    array = pa.array(texts, pa.large_string())
    ids, sizes = ours.encode(array)
    monkeypatch.setattr(encoder, "PIECE_BYTES", piece_bytes)
    assert max(len(list(cut_text(text.encode(), piece_bytes, ours.cuts))) for text in texts) > 5
    in_pieces, sizes_in_pieces = ours.encode(array)
    assert (in_pieces == ids).all()
    assert (sizes_in_pieces == sizes).all()


def test_a_difference_from_the_reference_is_found(ours: Encoder) -> None:
    text = b"It's a text of some length"
    ids, _ = ours.encode(pa.array([text.decode()], pa.large_string()))
    assert ours.find_difference(text, ids) is None
    wrong = ids.copy()
    wrong[3] += 1
    assert ours.find_difference(text, wrong) == 3
    assert ours.find_difference(text, ids[:-1]) == len(ids) - 1
    assert ours.find_difference(text, np.append(ids, ids[0])) == len(ids)
    assert ours.find_difference(b"", ids[:0]) is None


def test_the_file_is_the_same_bytes_every_time() -> None:
    digest = hashlib.sha256(build_gpt2_json().encode("utf-8")).hexdigest()
    assert digest == "fb062c17ac0fc15422b2c99b9eefac544987d0477cc6db3ec37f646323e4e685"


def test_another_merge_list_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "vocab.bpe").write_text("#version: 0.2\na b\n")
    monkeypatch.setattr(prep_tokenizer, "files", lambda _: tmp_path)
    with pytest.raises(ValueError, match=r"vocab.bpe: sha256 \w+, expected 1ce16647\w+; the inst"):
        build_gpt2_json.__wrapped__()


def test_the_licence_of_the_merges_comes_along() -> None:
    licence = (files("prep") / "gpt2" / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("Modified MIT License\n\nSoftware Copyright (c) 2019 OpenAI")
