"""A tokenizer.json as GGUF has it: the tokens, their kinds, and the name of how text is split.

llama.cpp knows ways of splitting text by name (`tokenizer.ggml.pre`) and has no regular expressions
of a file, so a tokenizer is written only where a name stands for exactly what it does.

Of SentencePiece's BPE, llama.cpp merges the pair that makes the token of the highest score,
whatever the pair; a tokenizer.json lists pairs. Both are the same where every pair that makes a
token is listed, and all pairs of one token stand together, as converters of such models list them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.export.source import Source

# llama.cpp's names of regular expressions. Where a word of the vocabulary is taken whole before
# anything is merged (ignore_merges), another name says so.
_ENDS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = rf"{_SUFFIXES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_WORDS}\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_ENDS}"
QWEN2 = rf"{_WORDS}\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_ENDS}"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_SUFFIXES}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_SUFFIXES}?|"
    rf"\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_ENDS}"
)
DIGITS = "\\p{N}"
# By the patterns, and whether merges are ignored.
PRE_TYPES: dict[tuple[tuple[str, ...], bool], str] = {
    ((GPT2,), False): "gpt-2",
    ((DIGITS, GPT2), False): "smollm",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "smaug-bpe",
    ((QWEN2,), False): "qwen2",
    ((GPT4O,), False): "gpt-4o",
}
NAMES = {GPT2: "GPT-2's", LLAMA3: "Llama 3's", QWEN2: "Qwen 2's", GPT4O: "GPT-4o's"}
# GGUF's kinds of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"  # What SentencePiece writes for a space.


@dataclass(frozen=True)
class GgufTokenizer:
    """What a GGUF file says of a tokenizer; one token for each row of the embedding."""

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    adds_space: bool | None = None


def describe_tokenizer(source: Source) -> GgufTokenizer:
    """The source's tokenizer; ValueError, saying why, for one that llama.cpp does not have."""
    content = source.tokenizer_json
    model: Mapping[str, Any] = content["model"]
    if model.get("type") != "BPE":
        raise refuse(f"is a {model.get('type')} model", "BPE, byte-level or SentencePiece's")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise refuse(f"has {key} {model[key]!r}", "none")
    added = {token["id"]: token for token in content.get("added_tokens") or ()}
    words = {number: text for text, number in model["vocab"].items()}
    tokens, kinds = [], []
    for number in range(source.num_words):
        if number in added:
            tokens.append(added[number]["content"])
            kinds.append(CONTROL if added[number]["special"] else USER_DEFINED)
        else:
            tokens.append(words.get(number, f"[PAD{number}]"))
            kinds.append(NORMAL if number in words else UNUSED)
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if model.get("byte_fallback"):
        return describe_sentencepiece(content, tokens, kinds, merges)
    if not merges:
        raise refuse("merges nothing", "merges, without which llama.cpp reads no tokenizer")
    pre = find_pre_type(content)
    return GgufTokenizer("gpt2", pre, tokens, kinds, [" ".join(pair) for pair in merges])


def find_pre_type(content: Mapping[str, Any]) -> str:
    """How llama.cpp calls a tokenizer.json's way to split text; ValueError if it has no name."""
    if content.get("normalizer") is not None:
        raise refuse(f"normalizes text ({content['normalizer']['type']})", "no normalizer")
    patterns, ignores = list_patterns(content), bool(content["model"].get("ignore_merges"))
    name = PRE_TYPES.get((patterns, ignores))
    if name is None:
        shown = ", then ".join(repr(NAMES.get(pattern, pattern)) for pattern in patterns)
        how = " and takes words whole (ignore_merges)" if ignores else ""
        raise refuse(
            f"splits text by {shown[:200]}{how}",
            f"{', '.join(NAMES.values())} or SmolLM's pattern",
        )
    return name


def list_patterns(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The regular expressions that a byte-level tokenizer.json splits text by, in order."""
    step = content.get("pre_tokenizer") or {"type": "none"}
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    patterns = []
    for step in steps:
        match step:
            case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated"} if (
                not step.get("invert")
            ):
                patterns.append(regex)
            case {"type": "Digits", "individual_digits": True}:
                patterns.append(DIGITS)
            case {"type": "ByteLevel"} if step is steps[-1] and not step.get("add_prefix_space"):
                patterns += [GPT2] if step.get("use_regex", True) else []
                return tuple(patterns)
            case _:
                break
    raise refuse(f"splits text by {step['type']}", "a byte-level tokenizer's pattern")


def describe_sentencepiece(
    content: Mapping[str, Any], tokens: list[str], kinds: list[int], merges: Sequence[Any]
) -> GgufTokenizer:
    """A tokenizer.json of a SentencePiece BPE model, with the scores that its merges stand for."""
    vocab: Mapping[str, int] = content["model"]["vocab"]
    ranks: dict[str, int] = {}
    last_made = ""
    for rank, (left, right) in enumerate(merges):
        made = left + right
        if made in ranks and made != last_made:
            raise refuse(f"merges {made!r} in several places", "all pairs of a token together")
        ranks.setdefault(made, rank)
        last_made = made
    listed = set(merges)
    for token in ranks:
        for cut in range(1, len(token)):
            pair = (token[:cut], token[cut:])
            if pair[0] in vocab and pair[1] in vocab and pair not in listed:
                raise refuse(f"does not merge {pair}, though both and {token!r} are tokens", "it")
    unknown = content["model"].get("unk_token")
    for number, token in enumerate(tokens):
        if token == unknown:
            kinds[number] = UNKNOWN
        elif len(token) == 6 and token.startswith("<0x") and kinds[number] == NORMAL:
            kinds[number] = BYTE
    scores = [-float(ranks.get(token, 0)) for token in tokens]
    adds_space = find_space(content)
    return GgufTokenizer("llama", "default", tokens, kinds, [], scores, adds_space)


def find_space(content: Mapping[str, Any]) -> bool:
    """Whether such a tokenizer puts a space before a text; ValueError if it splits text as well."""
    normalizer, splitter = content.get("normalizer"), content.get("pre_tokenizer")
    steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if splitter is None and steps == [{"type": "Prepend", "prepend": SPACE}, replaced]:
        return True
    if splitter is None and steps == [replaced]:
        return False
    if not steps and splitter and splitter["type"] == "Metaspace" and not splitter.get("split"):
        return bool(splitter.get("prepend_scheme", "always") != "never")
    raise refuse("splits or normalizes text in its own way", "SentencePiece's spaces alone")


def refuse(found: str, expected: str) -> ValueError:
    """The error for a tokenizer that llama.cpp would read otherwise."""
    return ValueError(
        f"the tokenizer {found}, which llama.cpp has no name for; expected {expected} (use "
        "--format onnx or int8, which keep tokenizer.json)"
    )
