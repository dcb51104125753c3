"""Where a long text may be cut so that its pieces, encoded one by one, give the ids of the whole.

Only for tokenizers of which that is proven:

- GPT-2's byte-level pattern, and those that followed it (of cl100k, o200k, Llama 3, Qwen). A cut is
  where every alternative of the pattern ends, whatever the context, and where none looks back or
  ahead across it.
- SentencePiece's way, where "▁" stands for a space: before a space, if the tokens that begin with
  "▁" are the only ones that have it.

Any other tokenizer gets its texts whole.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shards.disk.json_files import Json

# Between a letter or a digit and another kind of (ASCII) character after it, and between anything
# else and white space after it. The last row is Chinese, Japanese and Korean. In GPT-2's pattern,
# only white space looks at what follows it.
GPT2_CUT = re.compile(
    rb"[A-Za-z](?=[^A-Za-z\x80-\xff])"
    rb"|[0-9](?=[^0-9\x80-\xff])"
    rb"|[!-~](?=[ \t\r\n])"
    rb"|[\xe4-\xef][\x80-\xbf]{2}(?=[ \t\r\n])"
)
# The later patterns join line ends to the punctuation before them, and o200k's an apostrophe's
# ending ('s) to the letters before it.
LATER_CUT = re.compile(
    rb"[A-Za-z](?=[^A-Za-z'\x80-\xff])"
    rb"|[0-9](?=[^0-9\x80-\xff])"
    rb"|[!-~](?=[ \t])"
    rb"|[\xe4-\xef][\x80-\xbf]{2}(?=[ \t])"
)
SPACE_CUT = re.compile(rb"[!-~](?= [^ ])")

# The patterns for which LATER_CUT is proven, as `simplify` writes them.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LATER_PATTERNS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}",
    rf"'(?i:[sdmt]|ll|ve|re)|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
    r"\s*[\r\n]|\s+(?!\S)|\s+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|"
    rf"\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}",
)
# Two ways to say that the pattern's matches are the words.
SPLIT_WAYS = (("Isolated", False), ("Removed", True))
SPACE = "\u2581"


@dataclass(frozen=True)
class Cuts:
    """Where texts may be cut: after each match of `pattern`, but not inside a token of `whole`."""

    pattern: re.Pattern[bytes]
    # A space after the cut is left out: the tokenizer puts one before each text.
    drops_space: bool = False
    # Tokens that are found in a text before it is split, in UTF-8.
    whole: tuple[bytes, ...] = ()

    def find(self, view: memoryview, start: int) -> int | None:
        """The first place from `start` on where the text may be cut."""
        reach = max(map(len, self.whole), default=1) - 1
        for match in self.pattern.finditer(view, start):
            near = bytes(view[max(match.end() - reach, 0) : match.end() + reach])
            if not any(token in near for token in self.whole):
                return match.end()
        return None


def cut_text(text: bytes, piece_bytes: int, cuts: Cuts | None) -> Iterator[str]:
    """Yield a UTF-8 text in pieces whose ids, concatenated, are those of the whole."""
    view = memoryview(text)
    start = 0
    while cuts is not None and len(view) - start > piece_bytes:
        stop = cuts.find(view, start + piece_bytes)
        if stop is None:
            break
        yield str(view[start:stop], "utf-8")
        start = stop + 1 if cuts.drops_space else stop
    yield str(view[start:], "utf-8")


def find_cuts(raw: Json) -> Cuts | None:
    """Where the texts of a tokenizer.json may be cut; None if no place is known to be safe."""
    added = [token for token in raw.get("added_tokens", []) if not token["special"]]
    flags = ("normalized", "lstrip", "rstrip", "single_word")
    if any(token.get(flag) for token in added for flag in flags):
        return None  # They reach beyond their own characters.
    whole = tuple(token["content"].encode("utf-8") for token in added)
    normalizer, splitter = raw.get("normalizer"), raw.get("pre_tokenizer")
    if is_local(normalizer):
        if is_gpt2(splitter):
            return Cuts(GPT2_CUT, whole=whole)
        if is_later(splitter):
            return Cuts(LATER_CUT, whole=whole)
    if normalizer is None and is_metaspace(splitter):
        return Cuts(SPACE_CUT, whole=whole)
    if (
        puts_space_first(normalizer)
        and splitter is None
        and not whole
        and keeps_words(raw["model"])
    ):
        return Cuts(SPACE_CUT, drops_space=True)
    return None


def is_local(normalizer: Any) -> bool:
    """Whether a normalizer changes nothing across a cut before an ASCII character: no such one
    combines with what is before it.
    """
    return normalizer is None or normalizer.get("type") == "NFC"


def is_gpt2(splitter: Any) -> bool:
    """Whether a pre-tokenizer is GPT-2's."""
    return is_bytes(splitter) and splitter.get("use_regex", True) is True


def is_bytes(splitter: Any) -> bool:
    """Whether a pre-tokenizer makes bytes into characters, and puts no space before the text."""
    return (
        isinstance(splitter, dict)
        and splitter.get("type") == "ByteLevel"
        and splitter.get("add_prefix_space") is False
    )


def is_later(splitter: Any) -> bool:
    """Whether a pre-tokenizer splits by one of LATER_PATTERNS and then makes bytes."""
    match splitter:
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, **way},
                {"use_regex": False} as last,
            ],
        }:
            is_split = (way.get("behavior"), way.get("invert")) in SPLIT_WAYS
            return is_split and simplify(pattern) in LATER_PATTERNS and is_bytes(last)
    return False


def simplify(pattern: str) -> str:
    """A pattern without what no cut depends on: how many digits go together, since none is between
    two, and that a repetition gives nothing back, since nothing else could take it.
    """
    greedy = re.sub(r"(\?|\+|\{1,\d\})\+", r"\1", pattern)
    return re.sub(r"\\p\{N\}(\{1,\d\}|\+)", r"\\p{N}", greedy)


def is_metaspace(splitter: Any) -> bool:
    """Whether a pre-tokenizer begins a word at each space, whose "▁" needs no other before it."""
    match splitter:
        case {"type": "Metaspace", "replacement": "\u2581", "split": True}:
            return True
    return False


def puts_space_first(normalizer: Any) -> bool:
    """Whether a normalizer puts "▁" before the text, and makes each space "▁"."""
    match normalizer:
        case {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        }:
            return True
    return False


def keeps_words(model: Any) -> bool:
    """Whether no token of a BPE has "▁" after another character, so that no merge goes across."""
    if model.get("type") != "BPE" or model.get("ignore_merges") or SPACE not in model["vocab"]:
        return False
    return not any(re.search(f"[^{SPACE}]{SPACE}", token) for token in model["vocab"])
