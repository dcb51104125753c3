"""Tokenizers of each kind that exports know, trained on a text; and texts that they disagree on."""

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from model.export.gguf.tokenizer import GPT2, GPT4O, LLAMA3, QWEN2, SPACE

END = "<|endoftext|>"
# What a byte-level tokenizer splits text by, and whether it takes words whole.
PATTERNS: dict[str, tuple[str | None, bool]] = {
    "GPT-2": (GPT2, False),
    "Llama 3": (LLAMA3, True),
    "Llama 3, merging": (LLAMA3, False),
    "Qwen 2": (QWEN2, False),
    "GPT-4o": (GPT4O, False),
    "SmolLM": (None, False),
}
SENTENCEPIECE = "SentencePiece"
# What tokenizers disagree on: spaces, line ends, digits, contractions, scripts, marks, code.
TEXTS = (
    "Hello, world!",
    "a",
    " ",
    "  ",
    " leading",
    "trailing ",
    "two  spaces   three",
    "\n",
    "\n\n\n",
    "line\nline\r\nline\r",
    "\ttab\t\ttabs",
    "  indented:\n    deeper\n\n  back",
    "1 12 123 1234 12345 1,234.56",
    "3.14159e-10 0xdeadbeef",
    "it's we'll I'M THEY'RE don't 'tis",
    "CamelCase snake_case SHOUTING mixedUP",
    "naïve café Ünïcödé",
    "e\u0301 and é",
    "北京 東京 서울",
    "Привет, мир! Γειά σου",  # noqa: RUF001
    "שלום עולם مرحبا بالعالم",
    "नमस्ते दुनिया",
    "🙂 👩‍👩‍👧 🏳️‍🌈",
    "\u00a0\u2003\u200b\ufeff",
    "…—“quoted”‘’«»",  # noqa: RUF001
    "!!!???...,,,;;;",
    "def f(x):\n\treturn x**2  # comment\n",
    "https://example.org/a?b=c&d=%20#e",
    "<|endoftext|> <s> </s> [INST]",
    "²½Ⅷ①٣",
)


def make_tokenizers(text: str) -> Iterator[tuple[str, str]]:
    """A small tokenizer.json of each kind, by its name."""
    for kind, (pattern, takes_whole) in PATTERNS.items():
        tokenizer = Tokenizer(models.BPE(ignore_merges=takes_whole))
        split: Any = (
            pre_tokenizers.Digits(individual_digits=True)
            if pattern is None
            else pre_tokenizers.Split(Regex(pattern), "isolated")
        )
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
        steps: Any = pre_tokenizers.Sequence([split, whole])
        tokenizer.pre_tokenizer, tokenizer.decoder = steps, decoders.ByteLevel()
        train(tokenizer, text, [END], pre_tokenizers.ByteLevel.alphabet())
        yield kind, tokenizer.to_str()
    yield SENTENCEPIECE, make_sentencepiece(text)


def train(tokenizer: Tokenizer, text: str, special: list[str], alphabet: list[str]) -> None:
    """Train a small vocabulary."""
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)


def make_sentencepiece(text: str) -> str:
    """A tokenizer.json as converters make it of a SentencePiece model: every pair is a merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")
    train(tokenizer, text, [], [])
    learned = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    tokens = ["<unk>", "<s>", END, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [token for token, _ in learned]
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [
        pair
        for token, _ in learned
        for pair in sorted(
            ((token[:cut], token[cut:]) for cut in range(1, len(token))),
            key=lambda pair: [vocab.get(part, -1) for part in pair],
        )
        if all(part in vocab for part in pair)
    ]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    decoding = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": token, "special": True, **flags}
            for number, token in enumerate(tokens[:3])
        ],
        "normalizer": {"type": "Sequence", "normalizers": [prepend, space]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoding},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges,
        },
    }
    return json.dumps(content)
