"""The tokenizer that made a set's ids: loading, checking, and the text that ids stand for.

The text of ids is what the tokenizer decodes. For nearly all tokenizers that is the bytes of one id
after another: byte-level BPE writes each byte as one visible character, and others write a space as
"▁", put one before each text, and have ids for single bytes. For the rest, such as WordPiece, a
document is decoded as a whole.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from shards.disk.json_files import Json
from shards.disk.layout import TOKENIZER
from shards.format import Int64, Manifest
from shards.screen.names import escape_line
from shards.widths import Tokens

# Documents decoded at a time, where ids do not add up to their text.
GROUP_DOCUMENTS = 256
# How vocabularies with byte fallback name the ids of single bytes.
BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")

# Texts whose ids the manifest records, so that a tokenizer (or a new release of the library) that
# cuts text differently is noticed: contractions, digits, scripts, spaces, a spelled-out special
# token.
SELF_TEST_TEXTS = (
    "Hello, world! It's 2026; we'd rather not.",
    "naïve café 北京 Привет 🙂",
    "  two spaces\n\n\tand tabs   ",
    "<|endoftext|> is text here",
    "def f(x):\n    return x ** 2  # 3.14159",
)


def read_tokenizer_json(path: Path) -> str:
    """The text of a tokenizer.json, with its own line ends: its sha256 is known."""
    return path.read_bytes().decode("utf-8")


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json so that text that spells out a special token stays text.

    The flag is not saved in the file and is lost on pickling, so every process loads it here.
    Raises ValueError if the file is not a tokenizer.
    """
    try:
        return parse_tokenizer(read_tokenizer_json(path))
    except Exception as error:  # The library raises a bare Exception for any fault in the file.
        raise ValueError(f"{path}: no tokenizer could be read from it ({error})") from None


@lru_cache(maxsize=1)
def parse_tokenizer(tokenizer_json: str) -> Tokenizer:
    """Build the tokenizer from a tokenizer.json's text; cached, as building it takes a while."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    # Left in the file by whoever last used it: they would cut texts or fill them up.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def count_ids(tokenizer: Tokenizer) -> int:
    """One more than the largest id: ids may be missing below it."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)


def make_self_test(tokenizer: Tokenizer) -> list[Json]:
    """The self-test texts and their ids, for the manifest."""
    return [{"text": text, "ids": encode_plainly(tokenizer, text)} for text in SELF_TEST_TEXTS]


def load_checked_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer:
    """Load a set's tokenizer; ValueError if it fails the manifest's self-test."""
    tokenizer = load_tokenizer(folder / TOKENIZER)
    for case in manifest.content["tokenizer"]["self_test"]:
        found = encode_plainly(tokenizer, case["text"])
        if found != case["ids"]:
            raise ValueError(
                f"{folder / TOKENIZER}: {case['text']!r} becomes {found}; expected "
                f"{case['ids']}, as when the set was made; restore the file or the release of "
                "`tokenizers` that made it"
            )
    return tokenizer


@dataclass(frozen=True)
class Spelling:
    """The text that the ids of a set stand for. Special tokens stand for none."""

    tokenizer: Tokenizer
    # After each document and, if there is one, before it.
    end_of_text: int
    begin_of_text: int | None
    special: frozenset[int]
    # The bytes of each id inside a document, and as its first: there, the space that was put before
    # the text is taken away.
    inner: list[bytes]
    first: list[bytes]

    @cached_property
    def sizes(self) -> Int64:
        """The number of bytes of each id inside a document."""
        return np.fromiter(map(len, self.inner), np.int64, len(self.inner))

    @cached_property
    def excess(self) -> Int64:
        """How many bytes fewer each id stands for as the first of a document."""
        return self.sizes - np.fromiter(map(len, self.first), np.int64, len(self.first))

    @cached_property
    def adds_up(self) -> bool:
        """Whether a document's text is what its ids stand for one by one, as some texts show."""
        lists = [encode_plainly(self.tokenizer, text) for text in SELF_TEST_TEXTS]
        space = " " * puts_space_before(self.tokenizer)
        texts = [self._decode(ids).removeprefix(space) for ids in lists]
        return [self._join(ids, is_first=True) for ids in lists] == texts

    def count_bytes(self, tokens: Tokens, sizes: Int64, counts: Int64) -> int:
        """The text of whole documents of so many tokens each, in bytes of UTF-8.

        `counts` says how often each id occurs in `tokens`.
        """
        ends = np.cumsum(sizes)
        if self.adds_up:
            places = ends - sizes + (self.begin_of_text is not None)
            firsts = tokens[np.minimum(places, ends - 1)]
            return int(counts @ self.sizes) - int(self.excess[firsts].sum())
        documents = iter(np.split(tokens, ends[:-1]) if len(ends) else ())
        num_bytes = 0
        while group := [self._drop_marks(ids) for ids in islice(documents, GROUP_DOCUMENTS)]:
            num_bytes += sum(len(text.encode()) for text in self.tokenizer.decode_batch(group))
        return num_bytes

    def join_bytes(self, tokens: Tokens, firsts: Int64) -> tuple[Int64, pa.Buffer]:
        """Where the bytes of each token begin and end, and all of them in a row, if ids add up.

        Documents begin with the tokens at the places `firsts`.
        """
        rows = tokens.astype(np.int64)
        rows[firsts] += len(self.inner)
        _, offsets, data = self.table.take(pa.array(rows)).buffers()
        return np.frombuffer(offsets, np.int64)[: len(tokens) + 1], data

    @cached_property
    def table(self) -> pa.Array:
        """The bytes of each id inside a document, then as its first."""
        return pa.array([*self.inner, *self.first], pa.large_binary())

    def name(self, token: int) -> str:
        """An id as the vocabulary writes it, such as <|endoftext|>."""
        return str(self.tokenizer.id_to_token(token))

    def show(self, token: int) -> str:
        """An id's text in which every character is visible; a special token's name."""
        is_special = token in self.special
        return escape_token(self.name(token).encode() if is_special else self.inner[token])

    def spell(self, ids: list[int], is_first: bool) -> str:
        """Ids of a set as text, special tokens by their names.

        `is_first` says that a document begins with the first of them. Of a character that is cut,
        the bytes that are there become U+FFFD.
        """
        texts = []
        for part in split_at(ids, self.end_of_text):
            name = ""
            if is_first and part and part[0] == self.begin_of_text:
                name, part = self.name(part[0]), part[1:]
            text = self._join(part, is_first) if self.adds_up else self._decode(part)
            texts.append(name + text)
            is_first = True
        return self.name(self.end_of_text).join(texts)

    def decode(self, tokens: Tokens) -> str:
        """What the tokenizer decodes the tokens of a document to."""
        return self._decode(self._drop_marks(tokens))

    def _join(self, ids: list[int], is_first: bool) -> str:
        contents = [self.name(i).encode() if i in self.special else self.inner[i] for i in ids]
        if is_first and ids and ids[0] not in self.special:
            contents[0] = self.first[ids[0]]
        return b"".join(contents).decode("utf-8", "replace")

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def _drop_marks(self, ids: Tokens) -> list[int]:
        marks = (self.end_of_text, self.begin_of_text)
        return [i for i in ids.tolist() if i not in marks]


def read_set_spelling(folder: Path, manifest: Manifest) -> Spelling:
    """What the ids of a set stand for; ValueError if its tokenizer fails the self-test."""
    tokenizer = load_checked_tokenizer(folder, manifest)
    return read_spelling(tokenizer, manifest.end_of_text, manifest.begin_of_text)


def load_spelling(path: Path, end_of_text: int, begin_of_text: int | None) -> Spelling:
    """What the ids of the set whose tokenizer.json is at `path` stand for."""
    return read_spelling(load_tokenizer(path), end_of_text, begin_of_text)


@lru_cache(maxsize=1)
def read_spelling(
    tokenizer: Tokenizer, end_of_text: int, begin_of_text: int | None = None
) -> Spelling:
    """What the ids of a tokenizer stand for, with those that a set puts around documents.

    Cached, as asking for each of 128,000 ids takes a while.
    """
    vocab = tokenizer.get_vocab()
    names = [""] * count_ids(tokenizer)
    for name, i in vocab.items():
        names[i] = name
    inner, first = read_contents(tokenizer, names)
    added = tokenizer.get_added_tokens_decoder()
    for i, token in added.items():
        inner[i] = first[i] = token.content.encode()
    special = {i for i, token in added.items() if token.special}
    special |= {i for i in (end_of_text, begin_of_text) if i is not None}
    for i in special:
        inner[i] = first[i] = b""
    if puts_space_before(tokenizer):
        first = [content.removeprefix(b" ") for content in first]
    return Spelling(tokenizer, end_of_text, begin_of_text, frozenset(special), inner, first)


def read_contents(tokenizer: Tokenizer, names: list[str]) -> tuple[list[bytes], list[bytes]]:
    """The bytes of ids with these names, inside a text and where a text begins.

    What kind of vocabulary it is shows in what its decoder makes of a few names.
    """
    decode = tokenizer.decoder.decode if tokenizer.decoder else " ".join
    if decode(["\u0120"]) == " ":
        byte_of = map_characters()
        contents = [read_symbols(name, byte_of) for name in names]
        return contents, contents.copy()
    has_bytes = decode(["<0x41>"]) == "A"
    before = decode(["x"])
    inner, first = [], []
    for name in names:
        match = BYTE_TOKEN.fullmatch(name) if has_bytes else None
        byte = bytes.fromhex(match[1]) if match else None
        inner.append(byte or decode(["x", name]).removeprefix(before).encode())
        first.append(byte or decode([name]).encode())
    return inner, first


def read_symbols(name: str, byte_of: dict[str, int]) -> bytes:
    """The bytes of a token of byte-level BPE; of one with other characters, its name's."""
    try:
        return bytes([byte_of[character] for character in name])
    except KeyError:
        return name.encode()


def encode_plainly(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text and no others: not those that a post-processor puts around it."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def puts_space_before(tokenizer: Tokenizer) -> bool:
    """Whether each text gets a space before it that decoding leaves there."""
    return bool(tokenizer.decode(encode_plainly(tokenizer, "x")) == " x")


def split_at(ids: list[int], mark: int) -> Iterator[list[int]]:
    """The parts of a list between the places of `mark`, of which there may be none.

    >>> list(split_at([1, 0, 2, 3, 0], 0))
    [[1], [2, 3], []]
    """
    start = 0
    for place in [i for i, token in enumerate(ids) if token == mark]:
        yield ids[start:place]
        start = place + 1
    yield ids[start:]


def map_characters() -> dict[str, int]:
    """The byte that each character stands for, in the order of GPT-2's first 256 ids.

    Visible Latin-1 characters stand for themselves; the characters from U+0100 on stand, in order,
    for the other 68 bytes.

    >>> byte_of = map_characters()
    >>> byte_of["a"], byte_of["\\u0120"], len(byte_of)
    (97, 32, 256)
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(visible))
    return {chr(byte): byte for byte in visible} | {
        chr(0x100 + place): byte for place, byte in enumerate(hidden)
    }


def escape_token(content: bytes) -> str:
    """A token's bytes as text in which every character is visible and no byte is lost.

    >>> print(escape_token(b" caf\\xc3\\xa9\\n"), escape_token(b"\\xe2\\x80"))
     café\\n \\xe2\\x80
    """
    return escape_line(content.decode("utf-8", "surrogateescape").replace("\\", "\\\\"))
