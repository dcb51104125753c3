"""How a tokenizer is called in GGUF: by its pattern, or refused where llama.cpp has no name."""

import json
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from tokenizers import Tokenizer

from benchmarks.quality.export_tokenizers import make_tokenizers
from model.export.gguf.tokenizer import (
    BYTE,
    CONTROL,
    GPT2,
    LLAMA3,
    NORMAL,
    QWEN2,
    UNKNOWN,
    UNUSED,
    describe_tokenizer,
)
from model.export.source import Source
from prep.vocabulary.patterns import PATTERNS
from tests.tiny import SENTENCES, TOKENIZER_JSON


@dataclass
class FakeSource:
    """What is read of a source here."""

    content: dict[str, Any]
    num_words: int = 304
    tokenizer_json: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.tokenizer_json = self.content


def describe(**changes: Any) -> Any:
    content = json.loads(TOKENIZER_JSON)
    model = changes.pop("model", {})
    content |= changes
    content["model"] |= model
    return describe_tokenizer(cast(Source, FakeSource(content)))


def split(*patterns: str) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
        for p in patterns
    ]
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "use_regex": False})
    return {"type": "Sequence", "pretokenizers": steps}


def test_tokens_have_their_kinds_and_rows_without_one_are_unused() -> None:
    found = describe()
    assert (found.model, found.pre) == ("gpt2", "gpt-2")
    assert (found.tokens[0], found.kinds[0]) == ("<|endoftext|>", CONTROL)
    assert found.kinds[1] == NORMAL
    assert (found.tokens[303], found.kinds[303]) == ("[PAD303]", UNUSED)
    content = Tokenizer.from_str(TOKENIZER_JSON)
    assert [content.id_to_token(n) for n in range(300)] == found.tokens[:300]
    assert found.merges[0].count(" ") == 1


def test_patterns_have_the_names_that_llama_cpp_gives_them() -> None:
    assert (PATTERNS["gpt2"], PATTERNS["llama3"], PATTERNS["qwen2"]) == (GPT2, LLAMA3, QWEN2)
    assert describe(pre_tokenizer=split(GPT2)).pre == "gpt-2"
    assert describe(pre_tokenizer=split(LLAMA3)).pre == "smaug-bpe"
    assert describe(pre_tokenizer=split(LLAMA3), model={"ignore_merges": True}).pre == "llama-bpe"
    assert describe(pre_tokenizer=split(QWEN2)).pre == "qwen2"
    digits = [{"type": "Digits", "individual_digits": True}]
    whole = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    smollm = {"type": "Sequence", "pretokenizers": [*digits, whole]}
    assert describe(pre_tokenizer=smollm).pre == "smollm"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pre_tokenizer": split(r"\w+")},
            r"splits text by '\\\\w\+', which llama.cpp has no name",
        ),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "splits text by Whitespace"),
        ({"pre_tokenizer": split(QWEN2), "model": {"ignore_merges": True}}, "takes words whole"),
        ({"normalizer": {"type": "NFC"}}, "normalizes text"),
        ({"model": {"type": "Unigram"}}, "is a Unigram model"),
        ({"model": {"dropout": 0.1}}, "has dropout 0.1"),
        ({"model": {"merges": []}}, "merges nothing"),
    ],
)
def test_what_llama_cpp_has_not_is_refused_by_name(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        describe(**changes)


def make_sentencepiece(merges: list[list[str]]) -> Any:
    """A SentencePiece model's tokenizer.json of a few tokens."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", *byte_tokens, "\u2581", "a", "b", "ab", "\u2581a", "\u2581ab"]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    content = {
        "added_tokens": [{"id": 1, "content": "<s>", "special": True}],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, space],
        },
        "pre_tokenizer": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    return describe_tokenizer(cast(Source, FakeSource(content, len(tokens))))


def test_sentencepieces_merges_become_scores() -> None:
    merges = [["a", "b"], ["\u2581", "a"], ["\u2581", "ab"], ["\u2581a", "b"]]
    found = make_sentencepiece(merges)
    assert (found.model, found.pre, found.adds_space) == ("llama", "default", True)
    assert found.kinds[:3] == [UNKNOWN, CONTROL, BYTE]
    scores = dict(zip(found.tokens, found.scores, strict=True))
    assert scores["ab"] > scores["\u2581a"] > scores["\u2581ab"]


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ([["a", "b"], ["\u2581", "a"], ["\u2581", "ab"]], "does not merge"),
        (
            [["\u2581", "ab"], ["a", "b"], ["\u2581", "a"], ["\u2581a", "b"]],
            "in several places",
        ),
    ],
)
def test_merges_that_scores_cannot_say_are_refused(merges: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sentencepiece(merges)


def test_the_benchmarks_tokenizers_are_of_the_kinds_that_they_are_named_for() -> None:
    """The ids of llama.cpp are compared by it, as that is not installed where tests run."""
    names = {}
    for kind, tokenizer_json in make_tokenizers(" ".join(SENTENCES)):
        found = describe_tokenizer(cast(Source, FakeSource(json.loads(tokenizer_json))))
        names[kind] = (found.model, found.pre)
    assert names == {
        "GPT-2": ("gpt2", "gpt-2"),
        "Llama 3": ("gpt2", "llama-bpe"),
        "Llama 3, merging": ("gpt2", "smaug-bpe"),
        "Qwen 2": ("gpt2", "qwen2"),
        "GPT-4o": ("gpt2", "gpt-4o"),
        "SmolLM": ("gpt2", "smollm"),
        "SentencePiece": ("llama", "default"),
    }
