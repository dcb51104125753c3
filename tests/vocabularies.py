"""Tokenizers of the shapes that people have, built offline: each as the text of a tokenizer.json.

gpt2            GPT-2's own: byte-level BPE, 50,257 ids
bpe_32k         byte-level BPE with 32,768 ids, the last of which is <|end|>
llama3          Llama 3's shape: its split pattern, 130,000 ids and more, <|begin_of_text|>
                that a post-processor puts before each text, ids in another order than merges
sentencepiece   Llama 2's shape: BPE with byte fallback, "▁" for spaces and before each text,
                <unk>, <s> and </s>
unigram         T5's shape: Unigram with byte fallback, Metaspace, <pad>, </s> and <unk>
"""

import json
from collections.abc import Iterable
from functools import cache
from itertools import islice
from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from prep.python_docs import read_topics
from prep.tokenizer.gpt2 import build_gpt2_json

NAMES = ("gpt2", "bpe_32k", "llama3", "sentencepiece", "unigram")
# What Llama 3 splits text into before it merges anything.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_IDS = 130_000


@cache
def build(name: str) -> str:
    """The tokenizer.json of one of NAMES."""
    builders = {
        "gpt2": build_gpt2_json,
        "bpe_32k": build_bpe_32k,
        "llama3": build_llama3,
        "sentencepiece": build_sentencepiece,
        "unigram": build_unigram,
    }
    return builders[name]()


def special(content: str, number: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": True}


def cut_gpt2(num_ids: int) -> dict[str, Any]:
    """GPT-2's tokenizer with its first ids only, and no special token: a BPE of its own."""
    raw: dict[str, Any] = json.loads(build_gpt2_json())
    model = raw["model"]
    model["merges"] = model["merges"][: num_ids - 256]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < num_ids}
    raw["added_tokens"] = []
    return raw


def build_bpe_32k() -> str:
    raw = cut_gpt2(32_767)
    raw["added_tokens"] = [special("<|end|>", 32_767)]
    return json.dumps(raw)


def build_llama3() -> str:
    """50,256 ids that text is made of, after as many as are missing that it never is."""
    raw = cut_gpt2(50_256)
    vocab: dict[str, int] = raw["model"]["vocab"]
    unused = LLAMA3_IDS - len(vocab)
    # Backwards: the rank of a merge says nothing about the id.
    vocab = {token: LLAMA3_IDS - 1 - i for token, i in vocab.items()}
    filler = {f"unused{chr(0x100 + 32)}{i}": i for i in range(unused)}
    raw["model"]["vocab"] = vocab | filler
    raw["model"]["ignore_merges"] = True
    names = ["<|begin_of_text|>", "<|end_of_text|>"]
    names += [f"<|reserved_special_token_{i}|>" for i in range(254)]
    raw["added_tokens"] = [special(name, LLAMA3_IDS + i) for i, name in enumerate(names)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    raw["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": LLAMA3_PATTERN},
                "behavior": "Isolated",
                "invert": False,
            },
            byte_level | {"use_regex": False},
        ],
    }
    raw["decoder"] = byte_level | {"use_regex": True}
    begin = {"SpecialToken": {"id": names[0], "type_id": 0}}
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            begin,
            {"Sequence": {"id": "A", "type_id": 0}},
            begin,
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {names[0]: {"id": names[0], "ids": [LLAMA3_IDS], "tokens": [names[0]]}},
    }
    return json.dumps(raw)


def byte_tokens() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def training_texts() -> list[str]:
    """Some of Python's help topics, and letters of other scripts so that their bytes are known."""
    return [*(text[:20_000] for _, text in islice(read_topics(), 60)), "naïve café Привет 北京"]


def build_sentencepiece(texts: Iterable[str] | None = None) -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=["<unk>", "<s>", "</s>", *byte_tokens()],
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts() if texts is None else texts, trainer)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return keep_special(tokenizer, ["<unk>", "<s>", "</s>"])


def build_unigram() -> str:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=3000,
        special_tokens=["<pad>", "</s>", "<unk>", *byte_tokens()],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    raw = json.loads(tokenizer.to_str())
    raw["model"]["byte_fallback"] = True
    return keep_special(Tokenizer.from_str(json.dumps(raw)), ["<pad>", "</s>", "<unk>"])


def keep_special(tokenizer: Tokenizer, names: list[str]) -> str:
    """The tokenizer's text with only these special: bytes are ordinary tokens."""
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] in names]
    return json.dumps(raw)
