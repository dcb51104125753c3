"""The tokenizer that made a set's ids, loaded from its tokenizer.json and checked."""

from pathlib import Path

from tokenizers import Tokenizer

from shards.format import TOKENIZER, Json, Manifest

# Texts whose ids the manifest keeps, so that a tokenizer (or a new release of the library) that
# cuts text otherwise is noticed: contractions, digits, scripts, spaces, a spelled special token.
SELF_TEST_TEXTS = (
    "Hello, world! It's 2026; we'd rather not.",
    "naïve café 北京 Привет 🙂",
    "  two spaces\n\n\tand tabs   ",
    "<|endoftext|> is text here",
    "def f(x):\n    return x ** 2  # 3.14159",
)


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json so that text which spells <|endoftext|> stays text.

    The flag is not kept in the file and is lost on pickling, so every process loads it here.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises bare Exception for any fault of the file.
        raise ValueError(f"{path}: no tokenizer could be read from it ({error})") from None
    tokenizer.encode_special_tokens = True
    return tokenizer


def make_self_test(tokenizer: Tokenizer) -> list[Json]:
    """The ids of the self-test texts, for the manifest."""
    return [{"text": text, "ids": tokenizer.encode(text).ids} for text in SELF_TEST_TEXTS]


def load_checked_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer:
    """Load a set's tokenizer and run the manifest's self-test on it."""
    tokenizer = load_tokenizer(folder / TOKENIZER)
    for case in manifest.content["tokenizer"]["self_test"]:
        found = tokenizer.encode(case["text"]).ids
        if found != case["ids"]:
            raise ValueError(
                f"{folder / TOKENIZER}: {case['text']!r} becomes {found}, the set was made with "
                f"{case['ids']}; restore the file or the release of `tokenizers` that made it"
            )
    return tokenizer
