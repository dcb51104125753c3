"""The tokenizer of a checkpoint: a text becomes in transformers what it became in the set."""

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from model.checkpoints.hugging_face import Boundaries
from model.checkpoints.kept_tokenizer import KeptTokenizer
from tests.tiny import TOKENIZER_JSON
from tests.vocabularies import LLAMA3_IDS, build

TEXT = "Once upon a time\n"


def encode(tokenizer_json: str, add_special_tokens: bool = True) -> list[int]:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    ids: list[int] = tokenizer.encode(TEXT, add_special_tokens=add_special_tokens).ids
    return ids


def change(**changes: Any) -> str:
    return json.dumps(json.loads(TOKENIZER_JSON) | changes)


def test_gpt2s_files_are_as_they_were() -> None:
    text = build("gpt2")
    kept = KeptTokenizer(text, Boundaries(50256))
    assert kept.make_tokenizer_json() is text
    assert kept.make_tokenizer_config_json(2048) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 2048,
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }


BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": False,
    "use_regex": True,
}
TEMPLATE = json.loads(
    processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>",
        pair="<|endoftext|> $A $B",
        special_tokens=[("<|endoftext|>", 0)],
    ).__getstate__()
)
ADDING = [
    TEMPLATE,
    {"type": "Sequence", "processors": [BYTE_LEVEL, TEMPLATE]},
    {"type": "Sequence", "processors": [{"type": "Sequence", "processors": [TEMPLATE]}]},
    {"type": "BertProcessing", "sep": ["a", 66], "cls": ["b", 67]},
    {
        "type": "RobertaProcessing",
        "sep": ["a", 66],
        "cls": ["b", 67],
        "trim_offsets": True,
        "add_prefix_space": False,
    },
]


@pytest.mark.parametrize("step", ADDING, ids=lambda step: str(step["type"]))
def test_what_a_post_processor_adds_was_not_in_the_set(step: dict[str, Any]) -> None:
    text = change(post_processor=step)
    plain = encode(text, add_special_tokens=False)
    assert encode(text) != plain
    assert encode(KeptTokenizer(text, Boundaries(0)).make_tokenizer_json()) == plain
    begun = KeptTokenizer(text, Boundaries(0, begin=5)).make_tokenizer_json()
    assert encode(begun) == [5, *plain]
    assert encode(begun, add_special_tokens=False) == plain


def test_what_adds_nothing_stays_byte_for_byte() -> None:
    for text in (TOKENIZER_JSON, change(post_processor=BYTE_LEVEL)):
        assert KeptTokenizer(text, Boundaries(0)).make_tokenizer_json() is text


def test_what_cuts_and_fills_a_text_is_left_out() -> None:
    tokenizer = Tokenizer.from_str(TOKENIZER_JSON)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=40)
    text = tokenizer.to_str()
    assert encode(text) != encode(TOKENIZER_JSON)
    kept = KeptTokenizer(text, Boundaries(0)).make_tokenizer_json()
    assert encode(kept) == encode(TOKENIZER_JSON)


def test_llama3s_begin_of_text_is_put_before_a_text_only_where_the_set_has_it() -> None:
    text = build("llama3")
    begin, end = LLAMA3_IDS, LLAMA3_IDS + 1
    plain = encode(text, add_special_tokens=False)
    without, having = (
        KeptTokenizer(text, Boundaries(end)),
        KeptTokenizer(text, Boundaries(end, begin)),
    )
    assert encode(without.make_tokenizer_json()) == plain
    assert encode(having.make_tokenizer_json()) == encode(text) == [begin, *plain]
    names = ("bos_token", "eos_token", "pad_token", "add_bos_token")
    ended = "<|end_of_text|>"
    config = without.make_tokenizer_config_json(8)
    assert [config[name] for name in names] == [ended, ended, ended, False]
    config = having.make_tokenizer_config_json(8)
    assert [config[name] for name in names] == [*("<|begin_of_text|>", ended, ended, True)]


def make_word_piece() -> str:
    vocab = {"[UNK]": 0, "[SEP]": 1, "once": 2, "##s": 3}
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return str(tokenizer.to_str())


@pytest.mark.parametrize(
    ("name", "end", "spelled", "unknown"),
    [
        ("sentencepiece", 2, "</s>", "<unk>"),
        ("unigram", 1, "</s>", "<unk>"),
        ("bpe_32k", 32_767, "<|end|>", "<|end|>"),
        # Tokens that are not marked as special.
        ("word_piece", 1, "[SEP]", "[UNK]"),
        ("unigram", 3, "<0x00>", "<unk>"),
    ],
    ids=["sentencepiece", "unigram", "bpe_32k", "word_piece", "a byte"],
)
def test_tokens_are_named_as_the_tokenizer_names_them(
    name: str, end: int, spelled: str, unknown: str
) -> None:
    text = make_word_piece() if name == "word_piece" else build(name)
    found = KeptTokenizer(text, Boundaries(end)).make_tokenizer_config_json(8)
    assert (found["eos_token"], found["unk_token"]) == (spelled, unknown)


def test_a_prefix_space_is_kept() -> None:
    """transformers 4 changes the tokenizer to what tokenizer_config.json says."""
    text = change(pre_tokenizer=BYTE_LEVEL)
    config = KeptTokenizer(text, Boundaries(0)).make_tokenizer_config_json(8)
    assert config["add_prefix_space"] is True
