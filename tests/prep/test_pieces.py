"""Long texts in pieces, special tokens in texts, and whether the fast encoder is exact: for
tokenizers of every shape.
"""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from prep.policy import Policy
from prep.request import ENCODERS, Request
from prep.run import prepare
from prep.tokenizer import encoder, exact, pieces
from prep.tokenizer.encoder import Encoder
from prep.tokenizer.exact import choose_encoder, find_inexact
from prep.tokenizer.pieces import cut_text, find_cuts
from prep.vocabulary.patterns import PATTERNS
from shards.format import read_manifest
from shards.tokenizer import parse_tokenizer
from tests.texts import make_texts, write_jsonl
from tests.vocabularies import NAMES, build, special

PROSE = (
    "It's 3 o'clock, said they; caf\u00e9s 1st \u4f60\u597d\u3002 \n\n  don't </s> \U0001f600 a/b "
)
ALPHABETS = (
    "ab1 \n'st",
    "aB'sS LL'lrR",
    "abc0123456789 ",
    "a!?/ \t\r\n",
    "\u4f60\u597d\u3002\uff0c \n\u3000",
    " \u2002\xa0\na\u0301\u0300e",
    "\u2581 a\u2581b",
    "<tool>call/ x",
)
# The split patterns of tiktoken's cl100k and o200k and of Qwen 2, and one that is nobody's.
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*|"
    r"\s*[\r\n]|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDINGS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDINGS}?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = (
    rf"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
OTHER = r"\s*[^\s]+\s*|\s+"
WITH_PIECES = ("gpt2", "llama3", "unigram", "cl100k", "o200k", "qwen", "words", "tools")
WHOLE = ("sentencepiece", "other", "prefixed", "stripping")


@cache
def vary(name: str) -> str:
    """One of NAMES, or a tokenizer made of one: another pattern, normalizer or added token."""
    if name in NAMES:
        return build(name)
    raw = json.loads(build("sentencepiece" if name == "words" else "bpe_32k"))
    patterns = {"cl100k": CL100K, "o200k": O200K, "qwen": QWEN, "other": OTHER}
    if name in patterns:
        splitter: dict[str, Any] = json.loads(build("llama3"))["pre_tokenizer"]
        splitter["pretokenizers"][0]["pattern"]["Regex"] = patterns[name]
        raw["pre_tokenizer"] = splitter
    if name == "cl100k":  # As transformers writes what it converts from tiktoken.
        splitter["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    if name == "qwen":
        raw["normalizer"] = {"type": "NFC"}
    if name == "prefixed":
        raw["pre_tokenizer"]["add_prefix_space"] = True
    if name in ("tools", "stripping"):
        flags = {"special": False, "lstrip": name == "stripping"}
        raw["added_tokens"] += [special(t, 32_768 + i) | flags for i, t in enumerate(TOOLS)]
    if name == "words":
        keep_words(raw["model"])
    return json.dumps(raw)


TOOLS = ("<tool>call", "a!?", "/ x")


def keep_words(model: dict[str, Any]) -> None:
    """Without the tokens that begin in one word and end in the next, as a real one has none."""

    def crosses(token: str) -> bool:
        return "\u2581" in token.lstrip("\u2581")

    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    dropped = {token for token in model["vocab"] if crosses(token)}
    model["merges"] = [p for p in merges if "".join(p) not in dropped and not dropped & set(p)]
    unused = (f"unused{i}" for i in range(len(dropped)))
    model["vocab"] = {next(unused) if t in dropped else t: i for t, i in model["vocab"].items()}


def make_hard_texts() -> list[str]:
    draw = random.Random(2)
    words = PROSE.split(" ")
    texts = [" ".join(draw.choices(words, k=400)) for _ in range(8)]
    texts += ["short", "x" * 5000, " a" * 3000, "a" + " " * 3000 + "b", "1" * 4000]
    texts += ["".join(draw.choices(alphabet, k=2000)) for alphabet in ALPHABETS * 5]
    texts += ["".join(draw.choices("".join(ALPHABETS), k=2000)) for _ in range(5)]
    return texts


@pytest.mark.parametrize("piece_bytes", [30, 64, 999])
@pytest.mark.parametrize("name", WITH_PIECES)
def test_a_long_text_in_pieces_has_the_ids_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, name: str, piece_bytes: int
) -> None:
    ours = encoder.build_encoder(vary(name), "tokenizers")
    assert ours.cuts is not None
    texts = make_hard_texts()
    array = pa.array(texts, pa.large_string())
    expected = [ours.reference.encode(text, add_special_tokens=False).ids for text in texts]
    monkeypatch.setattr(encoder, "PIECE_BYTES", piece_bytes)
    counts = [len(list(cut_text(text.encode(), piece_bytes, ours.cuts))) for text in texts]
    assert max(counts) > 3
    ids, sizes = ours.encode(array)
    found = np.split(ids, np.cumsum(sizes)[:-1])
    for text, document, wanted in zip(texts, found, expected, strict=True):
        assert document.tolist() == wanted, ascii(text)


@pytest.mark.parametrize("name", WHOLE)
def test_where_no_cut_is_proven_a_text_stays_whole(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert find_cuts(json.loads(vary(name))) is None
    ours = encoder.build_encoder(vary(name), "tokenizers")
    text = PROSE * 40
    monkeypatch.setattr(encoder, "PIECE_BYTES", 100)
    ids, _ = ours.encode(pa.array([text], pa.large_string()))
    assert ids.tolist() == ours.reference.encode(text, add_special_tokens=False).ids


def test_an_added_token_that_is_not_special_is_found_in_text_and_never_cut() -> None:
    ours = encoder.build_encoder(vary("tools"), "tokenizers")
    text = "do <tool>call now <|end|>"
    ids, _ = ours.encode(pa.array([text], pa.large_string()))
    assert 32_768 in ids.tolist()
    assert 32_767 not in ids.tolist()
    assert ours.reference.decode(ids.tolist(), skip_special_tokens=False) == text
    assert "".join(cut_text(("x <tool>call " * 50).encode(), 30, ours.cuts)).count("<tool>c") == 50
    for piece in cut_text(("x <tool>call " * 50).encode(), 30, ours.cuts):
        assert piece.count("<tool>call") == piece.count("<")


def spelled_whole(name: str) -> str:
    """A tokenizer whose model has its special tokens in its own vocabulary, and would find them."""
    raw = json.loads(build(name))
    if name == "llama3":
        vocab = raw["model"]["vocab"]
        raw["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\S+|\s+"
        for token in raw["added_tokens"][:2]:
            vocab[token["content"]] = token["id"]
    return json.dumps(raw)


@pytest.mark.parametrize("name", ["unigram", "llama3"])
def test_a_special_token_in_the_models_own_vocabulary_is_text_too(name: str) -> None:
    tokenizer_json = spelled_whole(name)
    ours = Encoder(tokenizer_json, "tokenizers")
    added = [token for token in json.loads(tokenizer_json)["added_tokens"] if token["special"]]
    specials = {token["id"] for token in added}
    text = " and ".join(["so", *(token["content"] for token in added[:3]), "end"])
    found, _ = ours.encode(pa.array([text, "so and"], pa.large_string()))
    assert not specials & set(found.tolist())
    plain = parse_tokenizer(tokenizer_json)
    assert specials & set(plain.encode(text, add_special_tokens=False).ids)
    assert plain.decode(found.tolist(), skip_special_tokens=False).startswith(text)


WORD_KINDS = ("WordPiece", "WordLevel", "Unigram", "BPE")


def make_words(kind: str, draw: random.Random) -> str:
    """A small tokenizer with plain and special added tokens in turn, in its vocabulary or not.

    The ids of a vocabulary that is a dictionary need not follow one another.
    """
    words = [f"w{number}" for number in range(8)]
    inside = [f"</s{number}>" for number in range(3)] + ["plain0", "plain1"]
    outside = ["</out0>", "</out1>", "covid", "flu", "cold"]
    tokens = ["<unk>", *words, *inside]
    draw.shuffle(tokens)
    step = draw.choice([1, 3]) if kind != "Unigram" else 1
    ids = {token: number * step for number, token in enumerate(tokens)}
    model: dict[str, Any] = {"type": kind, "vocab": ids, "unk_token": "<unk>"}
    if kind == "WordPiece":
        model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    if kind == "Unigram":
        vocab = [[token, -1.0 - draw.random()] for token in tokens]
        model = {"type": kind, "vocab": vocab, "unk_id": tokens.index("<unk>")}
    if kind == "BPE":
        model |= {"merges": [], "ignore_merges": True}
    added = draw.sample(["<unk>", *inside, *outside], draw.randrange(4, 11))
    raw = {
        "version": "1.0",
        "added_tokens": [special(t, 0) | {"special": t.startswith("<")} for t in added],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": model,
    }
    # As the library writes it: with the ids that it gives.
    return str(Tokenizer.from_str(json.dumps(raw)).to_str())


@pytest.mark.parametrize("kind", WORD_KINDS)
def test_added_tokens_keep_their_numbers_where_special_ones_are_hidden(kind: str) -> None:
    draw = random.Random(kind)
    words = ["w0", "w3", "w7", "plain0", "plain1", "covid", "flu", "cold", "other"]
    num_hidden = 0
    for _ in range(60):
        tokenizer_json = make_words(kind, draw)
        ours, plain = Encoder(tokenizer_json, "tokenizers"), parse_tokenizer(tokenizer_json)
        texts = [" ".join(draw.choices(words, k=12)) for _ in range(10)]
        found, sizes = ours.encode(pa.array(texts, pa.large_string()))
        documents = np.split(found, np.cumsum(sizes)[:-1])
        for text, ids in zip(texts, documents, strict=True):
            assert ids.tolist() == plain.encode(text).ids, (text, tokenizer_json)
        added = plain.get_added_tokens_decoder()
        # Where ids are missing, the library may give an added token the id of another.
        taken = {i for token, i in plain.get_vocab().items() if token[0] != "<" or token == "<unk>"}
        specials = {i: t.content for i, t in added.items() if t.special and i not in taken}
        spelled = " ".join(["w1", *specials.values(), "covid"])
        found, _ = ours.encode(pa.array([spelled], pa.large_string()))
        assert not specials.keys() & set(found.tolist())
        num_hidden += bool(specials.keys() & set(plain.encode(spelled).ids))
    assert num_hidden > 10


@pytest.mark.parametrize("name", ENCODERS)
def test_a_special_token_that_reaches_for_spaces_around_it_is_text_too(name: str) -> None:
    pytest.importorskip(name)
    raw = json.loads(build("bpe_32k"))
    flags = {"lstrip": True, "rstrip": True, "normalized": True, "single_word": True}
    raw["added_tokens"] = [token | flags for token in raw["added_tokens"]]
    texts = pa.array(["a  <|end|>  b", "<|end|>\n", " x<|end|>y"], pa.large_string())
    found, _ = Encoder(json.dumps(raw), name).encode(texts)
    plain, _ = Encoder(build("bpe_32k"), name).encode(texts)
    assert found.tolist() == plain.tolist()
    assert 32_767 not in found.tolist()


@pytest.mark.parametrize("name", ["gpt2", "bpe_32k", "llama3", "sentencepiece", "tools", "qwen"])
def test_the_fast_encoder_passes_the_trial_where_it_is_exact(name: str) -> None:
    pytest.importorskip("fastokens")
    ours = encoder.build_encoder(vary(name), "fastokens")
    assert find_inexact(ours) is None


class Wrong:
    """An encoder that is wrong about one word."""

    def __init__(self, right: Any, word: str) -> None:
        self.right = right
        self.word = word

    def encode_batch_flat(self, texts: list[str], **options: bool) -> tuple[bytes, bytes]:
        return self.right.encode_batch_flat(  # type: ignore[no-any-return]
            [text.replace(self.word, "x") for text in texts], **options
        )


def test_an_encoder_that_fails_the_trial_is_not_used_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastokens")
    load = encoder.load_fastokens
    monkeypatch.setattr(encoder, "load_fastokens", lambda text: Wrong(load(text), "\r\n"))
    encoder.build_encoder.cache_clear()
    try:
        source = write_jsonl(tmp_path / "a.jsonl", [*make_texts(20)])
        (tmp_path / "tokenizer.json").write_text(build("bpe_32k"))
        said: list[str] = []
        request = Request(
            tmp_path / "shards",
            inputs=(str(source),),
            policy=Policy(),
            tokenizer=str(tmp_path / "tokenizer.json"),
            workers=1,
        )
        prepare(request, said.append)
        [line] = [line for line in said if "encodes instead" in line]
        assert line.startswith("fastokens gives other ids than tokenizers with this tokenizer, for")
        assert "; tokenizers encodes instead: the same ids, but slower" in line
        assert read_manifest(tmp_path / "shards").audit["documents_read"] == 20
        with pytest.raises(ValueError, match="--encoder is fastokens: fastokens gives other ids"):
            choose_encoder("fastokens", build("bpe_32k"))
        assert choose_encoder("tokenizers", build("bpe_32k")).reason is None
    finally:
        encoder.build_encoder.cache_clear()


def test_the_trial_has_what_tokenizers_differ_in() -> None:
    texts = list(exact.list_hard_texts(["<|end|>", "word"]))
    together = "\0".join(texts)
    for part in ("<|end|>", "'ll", "\r\n\r\n", " " * 999, "0" * 5000, "\u0e01", "\U0001f600"):
        assert part in together
    pairs = {text for text in texts if len(text) == 2 and text.isascii()}
    assert len(pairs) == 128 * 128
    assert len(texts) < 30_000


def test_patterns_that_mean_the_same_cuts_are_one() -> None:
    for pattern in (CL100K, O200K, QWEN, *PATTERNS.values()):
        assert pieces.simplify(pattern) in pieces.LATER_PATTERNS, pattern
    assert pieces.simplify(OTHER) not in pieces.LATER_PATTERNS
