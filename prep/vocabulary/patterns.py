"""How text is split before anything is merged: no token reaches over a split.

The named patterns are those of the models they are named after. Digits in threes and letters of
any case after an apostrophe are what most models since GPT-4 have; GPT-2's own makes tokens of
whole runs of digits.
"""

from tokenizers import Regex, pre_tokenizers

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "llama3": rf"{_WORDS}\p{{N}}{{1,3}}{_REST}",
    "qwen2": rf"{_WORDS}\p{{N}}{_REST}",
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


def make_splitter(pattern: str) -> pre_tokenizers.Split:
    """What splits text by a named pattern or a regular expression; ValueError if it is neither."""
    try:
        regex = Regex(PATTERNS.get(pattern, pattern))
    except Exception as error:  # The library raises a bare Exception.
        raise ValueError(
            f"--pattern is {pattern!r:.200}; expected {', '.join(PATTERNS)}, or a regular "
            f"expression ({error})"
        ) from None
    return pre_tokenizers.Split(regex, "isolated")


def check_special_tokens(pattern: str, tokens: tuple[str, ...]) -> None:
    """ValueError for a special token that the pattern keeps whole, so that text may become it too.

    No vocabulary holds two tokens of one spelling.
    """
    splitter = make_splitter(pattern)
    for token in tokens:
        if len(splitter.pre_tokenize_str(token)) < 2:
            raise ValueError(
                f"the special token {token!r:.60} is one word to --pattern, so text may become it; "
                "choose a spelling that is split, such as <name>"
            )
