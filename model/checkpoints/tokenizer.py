"""The tokenizer of a checkpoint folder, loaded so that a prompt becomes what the model was given.

A folder of ours, which its seal shows, was trained on text that prep encoded: there, text that
spells a special token is text, and its tokenizer.json adds what prep added. Unlike prep, this hides
no special token from a model that has it in its own vocabulary and takes whole words (Unigram,
WordPiece, WordLevel, BPE with ignore_merges): there, a prompt that spells it has it. A folder from
elsewhere is read as transformers reads it: its special tokens can be written, unless
tokenizer_config.json says split_special_tokens, and its post-processor may add some.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace

from model.checkpoints.hugging_face import Json
from model.checkpoints.seal import TOKENIZER, TOKENIZER_CONFIG, CheckpointError, read_json

# Twice what the largest take, those with 262,144 tokens.
MAX_TOKENIZER_BYTES = 2**26
# The classes of transformers that encode with tokenizer.json as it is.
PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
# Those that take only vocabulary and merges from it, and cut texts as SentencePiece does.
LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
# SentencePiece's own format.
SENTENCEPIECE = "tokenizer.model"
SPACE = "▁"
# What cuts a text before byte-level BPE and drops nothing of it.
CUTTING = ("ByteLevel", "Digits", "Punctuation", "Split")
DROPPING = "Removed"
# The class of what a panic in Rust becomes; no package exports it.
PANIC = "PanicException"
SPECIAL_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def load_tokenizer(folder: Path, is_ours: bool, tokenizer_json: str | None = None) -> Tokenizer:
    """The folder's tokenizer, else the given one; `encode(prompt).ids` are the model's input.

    Raises CheckpointError, naming the file, if it cannot be read.
    """
    path = folder / TOKENIZER
    if not path.is_file() and (folder / SENTENCEPIECE).is_file():
        code = f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        raise CheckpointError(
            f"{folder}: has {SENTENCEPIECE}, which is not read, and no {TOKENIZER}; transformers "
            f"makes that of it, with sentencepiece installed: from transformers import "
            f"AutoTokenizer; {code}"
        )
    content = _read_content(path) if path.is_file() else (tokenizer_json or "").encode()
    if not content:
        raise CheckpointError(f"{folder}: no {TOKENIZER}; put the model's tokenizer there")
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # The library raises a bare Exception for any error.
        raise CheckpointError(f"{path}: not a readable tokenizer ({error})") from None
    # Left in the file by whoever last used it: they would cut or fill up the prompt.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if is_ours:
        tokenizer.encode_special_tokens = True
        return tokenizer
    path = folder / TOKENIZER_CONFIG
    try:
        _apply_config(tokenizer, read_json(path) if path.is_file() else {})
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    return tokenizer


class TokenizerPanic(ValueError):
    """A text that a tokenizer.json cannot encode: its regular expression gave up, for one."""


@contextmanager
def naming_panics() -> Iterator[None]:
    """A panic of `tokenizers`, which Python does not count as an Exception, as TokenizerPanic."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        reason = " ".join(str(error).split())
        raise TokenizerPanic(f"the tokenizer cannot encode this text ({reason:.200})") from None


def splits_special_tokens(folder: Path) -> bool:
    """Whether others cannot write <|endoftext|> with the folder's tokenizer: once, ours said so."""
    path = folder / TOKENIZER_CONFIG
    return path.is_file() and read_json(path).get("split_special_tokens") is True


def _read_content(path: Path) -> bytes:
    num_bytes = path.stat().st_size
    if num_bytes > MAX_TOKENIZER_BYTES:
        raise CheckpointError(
            f"{path}: {num_bytes:,} bytes; expected at most {MAX_TOKENIZER_BYTES:,} in a tokenizer"
        )
    return path.read_bytes()


def _apply_config(tokenizer: Tokenizer, values: Json) -> None:
    """Change a tokenizer.json's tokenizer as transformers does for tokenizer_config.json's values.

    Tokens that only this file names become special, with new ids unless the vocabulary has them.
    Its add_bos_token means nothing beside a tokenizer.json, whose post-processor decides. Raises
    ValueError where transformers builds another tokenizer from the vocabulary.
    """
    name = values.get("tokenizer_class")
    if name in LLAMA_CLASSES and falls_back_to_bytes(tokenizer):
        cut_as_llama(tokenizer, values)
    elif not isinstance(tokenizer.decoder, ByteLevel) and name not in PLAIN_CLASSES:
        raise ValueError(
            f"tokenizer_class is {name!r}, which may make other ids than {TOKENIZER}; expected "
            f"{PLAIN_CLASSES[0]}, a byte-level tokenizer like GPT-2's, or a LlamaTokenizer with "
            "byte fallback"
        )
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token in _list_tokens(values):
        if token.content not in known:  # The first mention counts.
            known.add(token.content)
            tokenizer.add_tokens([token])
    tokenizer.encode_special_tokens = values.get("split_special_tokens") is True


def falls_back_to_bytes(tokenizer: Tokenizer) -> bool:
    """Whether what is not in a BPE's vocabulary becomes its bytes, so that nothing is unknown."""
    model = tokenizer.model
    return (
        isinstance(model, BPE)
        and model.byte_fallback
        and all(tokenizer.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))
    )


def cut_as_llama(tokenizer: Tokenizer, values: Json) -> None:
    """Cut texts as transformers' LlamaTokenizer does, whatever tokenizer.json says of that.

    A space goes before a text: before all that stands between special tokens if it is `legacy`, and
    never without `add_prefix_space`; nor where there is one already.
    """
    adds_space = values.get("add_prefix_space") is not False
    scheme = "never" if not adds_space else "always" if values.get("legacy") else "first"
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = Metaspace(SPACE, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] * adds_space)])


def _list_tokens(values: Json) -> Iterator[AddedToken]:
    """The tokens that a tokenizer_config.json names, in the order in which they get their ids."""
    added = values.get("added_tokens_decoder") or {}
    if not isinstance(added, dict) or not all(key.isdecimal() for key in added):
        raise ValueError("added_tokens_decoder is not an object of ids and their tokens")
    for _, value in sorted(added.items(), key=lambda item: int(item[0])):
        yield _read_token(value, "added_tokens_decoder", special=False)
    for name in SPECIAL_TOKENS:
        if (value := values.get(f"{name}_token")) is not None:
            yield _read_token(value, f"{name}_token")
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = values.get(key) or []
        for value in more.values() if isinstance(more, dict) else more:
            yield _read_token(value, key)


def _read_token(value: Any, key: str, special: bool = True) -> AddedToken:
    """A token, written as its text or as an object that also has its flags."""
    flags: Json = {"content": value} if isinstance(value, str) else value
    if not isinstance(flags, dict) or not isinstance(flags.get("content"), str):
        raise ValueError(f"{key} is {value!r}; expected a token's text, or an object with it")
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    given = {name: flags[name] is True for name in names if name in flags}
    return AddedToken(flags["content"], **({"special": special} | given))


def find_longest_token(tokenizer: Tokenizer) -> int | None:
    """The most bytes of a text that one token can stand for; None if that has no bound.

    Byte-level BPE puts each byte of a text into one token. Other tokenizers may shorten a text
    first, or drop some of it, and so may added tokens that take the spaces beside them.
    """
    content: Json = json.loads(tokenizer.to_str())
    cutting = content["pre_tokenizer"] or {}
    steps = cutting["pretokenizers"] if cutting.get("type") == "Sequence" else [cutting]
    added, vocab = content["added_tokens"], content["model"].get("vocab")
    keeps_all = (
        content["model"]["type"] == "BPE"
        and content["normalizer"] is None
        and "ByteLevel" in [step.get("type") for step in steps]
        and all(step.get("type") in CUTTING for step in steps)
        and all(step.get("behavior") != DROPPING for step in steps)
        and not any(token["lstrip"] or token["rstrip"] for token in added)
        and all(character in vocab for character in pre_tokenizers.ByteLevel.alphabet())
    )
    if not keeps_all:
        return None
    # A character of the vocabulary is a byte.
    return max(*map(len, vocab), *(len(token["content"].encode()) for token in added))


def count_least(text: str, longest_token: int | None) -> int:
    """How many tokens a text becomes at least, by its size alone; 0 if nothing is known.

    >>> count_least("naïve", 5), count_least("naïve", None)
    (2, 0)
    """
    return 0 if longest_token is None else -(-len(text.encode("utf-8")) // longest_token)
