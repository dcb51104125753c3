"""GPT-2's byte-level BPE as one tokenizer.json, built from the packaged merge list alone.

The file is what `tokenizers` and everything on top of it loads. It is written here rather than by
that library, so that its bytes, and the sha256 that a dataset is known by, stay the same whatever
version is installed.
"""

import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

from shards.tokenizer import map_characters

VOCAB_SIZE = 50257
END_OF_TEXT = 50256
END_OF_TEXT_TOKEN = "<|endoftext|>"

_VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


@cache
def build_gpt2_json() -> str:
    """Return the text of GPT-2's tokenizer.json, the same bytes on every machine.

    Ids are GPT-2's: the 256 bytes, the 50,000 merges in order, then <|endoftext|> = 50256. Text
    encodes to what tiktoken's `encode_ordinary` gives if the loader sets `encode_special_tokens`;
    without it, text that spells <|endoftext|> would become the special token.

    Raises ValueError if the packaged merge list is not the one that OpenAI published.
    """
    merges = _read_merges()
    symbols = [*map_characters(), *(merge.replace(" ", "") for merge in merges), END_OF_TEXT_TOKEN]
    vocab = {symbol: i for i, symbol in enumerate(symbols)}
    assert len(vocab) == VOCAB_SIZE
    assert vocab[END_OF_TEXT_TOKEN] == END_OF_TEXT
    return _write(_describe(vocab, merges)) + "\n"


def _read_merges() -> list[str]:
    """Read the merges, "left right" each, most frequent first, from the packaged vocab.bpe."""
    data = files("prep").joinpath("gpt2", "vocab.bpe").read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != _VOCAB_BPE_SHA256:
        raise ValueError(
            f"prep/gpt2/vocab.bpe: sha256 {found}, expected {_VOCAB_BPE_SHA256}; "
            "the installation is damaged: install velocitylm again"
        )
    version, *merges = data.decode("utf-8").splitlines()
    assert version == "#version: 0.2"
    return merges


def _write(description: dict[str, Any]) -> str:
    """What json.dumps(description, indent=1) writes, in a fifth of the time.

    json falls back to Python code to indent, so the two long parts are written without indent, with
    the line ends in their separators.
    """
    model = description["model"]
    text = json.dumps(description | {"model": model | {"vocab": {}, "merges": []}}, indent=1)
    for key, empty in (("vocab", "{}"), ("merges", "[]")):
        long = json.dumps(model[key], ensure_ascii=False, separators=(",\n   ", ": "))
        text = text.replace(
            f'"{key}": {empty}', f'"{key}": {long[0]}\n   {long[1:-1]}\n  {long[-1]}'
        )
    return text


def _describe(vocab: dict[str, int], merges: list[str]) -> dict[str, Any]:
    """Lay the vocabulary and the merges out as the `tokenizers` library reads them."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    end_of_text = {
        "id": END_OF_TEXT,
        "content": END_OF_TEXT_TOKEN,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocab,
        "merges": merges,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end_of_text],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }
