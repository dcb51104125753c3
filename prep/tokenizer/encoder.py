"""Texts -> ids, with `fastokens` if it is installed, else with `tokenizers`, the reference.

Both read the set's tokenizer.json. A long text is encoded in pieces that give the same ids as the
whole, so that no text, however long, takes much memory.
"""

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prep.readers.documents import find_offsets
from shards.format import Int64
from shards.tokenizer import count_ids, parse_tokenizer
from shards.widths import Tokens, choose_token_bytes, token_dtype

Ids = npt.NDArray[np.uint32]


# Documents encoded at a time: few, so that their texts stay in the processor's cache.
GROUP_DOCUMENTS = 256
# Texts longer than this are encoded in pieces of about this size.
PIECE_BYTES = 4 << 20
# About how much of a text is encoded again to compare; none if no cut is near.
CHECKED_BYTES = 64 << 10
# Where GPT-2's pattern splits whatever the context: between a letter or a digit and another kind
# of (ASCII) character after it, and between anything else and white space after it. The last row is
# Chinese, Japanese and Korean. In the pattern, only white space looks at what follows it.
SAFE_CUT = re.compile(
    rb"[A-Za-z](?=[^A-Za-z\x80-\xff])"
    rb"|[0-9](?=[^0-9\x80-\xff])"
    rb"|[!-~](?=[ \t\r\n])"
    rb"|[\xe4-\xef][\x80-\xbf]{2}(?=[ \t\r\n])"
)


def choose_encoder(wanted: str | None) -> str:
    """The encoder to use: the one that --encoder names, else the fastest that is installed."""
    if wanted:
        return wanted
    try:
        metadata.version("fastokens")
    except metadata.PackageNotFoundError:
        return "tokenizers"
    return "fastokens"


class Encoder:
    """Encodes Arrow arrays of texts with one of ENCODERS; a special token in a text stays text."""

    def __init__(self, tokenizer_json: str, name: str) -> None:
        self.name = name
        self.reference = parse_tokenizer(tokenizer_json)
        self.vocab_size = count_ids(self.reference)
        self.dtype = token_dtype(choose_token_bytes(self.vocab_size))
        self.fast = load_fastokens(tokenizer_json) if name == "fastokens" else None

    def encode(self, texts: pa.Array) -> tuple[Tokens, Int64]:
        """The ids of non-null `texts`, concatenated, and how many each text has."""
        ids: list[Ids | Tokens] = [np.empty(0, self.dtype)]
        sizes = np.zeros(len(texts), np.int64)
        if (np.diff(find_offsets(texts)) <= PIECE_BYTES).all():
            for start in range(0, len(texts), GROUP_DOCUMENTS):
                group = slice(start, start + GROUP_DOCUMENTS)
                found, sizes[group] = self._encode_strings(texts[group].to_pylist())
                ids.append(found)
        else:
            for index, text in enumerate(texts):
                for piece in cut_text(text.as_buffer(), PIECE_BYTES):
                    found, _ = self._encode_strings([piece])
                    ids.append(found.astype(self.dtype))
                    sizes[index] += len(found)
        return np.concatenate(ids, dtype=self.dtype, casting="unsafe"), sizes

    def _encode_strings(self, texts: list[str]) -> tuple[Ids, Int64]:
        if self.fast is None:
            encodings = self.reference.encode_batch_fast(texts, add_special_tokens=False)
            lists = [encoding.ids for encoding in encodings]
            sizes = np.fromiter(map(len, lists), np.int64, len(lists))
            ids = np.fromiter(chain.from_iterable(lists), np.uint32, int(sizes.sum()))
        else:
            id_bytes, offset_bytes = self.fast.encode_batch_flat(texts, split_special_tokens=True)
            ids = np.frombuffer(id_bytes, "<u4")
            offsets = np.frombuffer(offset_bytes, "<u8").astype(np.int64)
            sizes = offsets[1:] - offsets[:-1]
        check_range(ids, self.vocab_size)
        return ids, sizes

    def find_difference(self, text: bytes, ids: Tokens) -> int | None:
        """The place of the first id that differs from the reference's; None if none does.

        Only the beginning of a long text is compared, and nothing of one that cannot be cut.
        """
        piece = next(cut_text(text, CHECKED_BYTES))
        num_bytes = len(piece.encode("utf-8"))
        if num_bytes > 2 * CHECKED_BYTES:
            return None
        expected = np.array(self.reference.encode(piece, add_special_tokens=False).ids, np.int64)
        if num_bytes < len(text):
            ids = ids[: len(expected)]
        shared = min(len(ids), len(expected))
        different = np.flatnonzero(ids[:shared] != expected[:shared])
        if len(different):
            return int(different[0])
        return None if len(ids) == len(expected) else shared


def load_encoder(path: Path, name: str) -> Encoder:
    """The encoder of the set whose tokenizer.json is at `path`."""
    return build_encoder(path.read_bytes().decode("utf-8"), name)


@lru_cache(maxsize=1)
def build_encoder(tokenizer_json: str, name: str) -> Encoder:
    """The encoder of a tokenizer.json's text, one per process: it loads slowly and caches words."""
    return Encoder(tokenizer_json, name)


def load_fastokens(tokenizer_json: str) -> Any:
    """Load the fast encoder, on one thread: a worker has one core."""
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
    import fastokens

    return fastokens.Tokenizer.from_json_str(tokenizer_json)


def cut_text(text: bytes, piece_bytes: int) -> Iterator[str]:
    """Yield a UTF-8 text in pieces whose ids, concatenated, are those of the whole."""
    view = memoryview(text)
    start = 0
    while len(view) - start > piece_bytes:
        found = SAFE_CUT.search(view, start + piece_bytes)
        if found is None:
            break
        yield str(view[start : found.end()], "utf-8")
        start = found.end()
    yield str(view[start:], "utf-8")


def check_range(ids: Ids, vocab_size: int) -> None:
    """Raise ValueError for an id that the vocabulary does not have."""
    if len(ids) and int(ids.max()) >= vocab_size:
        raise ValueError(
            f"the tokenizer gave the id {int(ids.max())}; expected 0 to {vocab_size - 1}"
        )
