"""Texts -> ids, with `fastokens` where it is exact, else with `tokenizers`, the reference.

Both read the set's tokenizer.json. Where that is known to give the same ids, a long text is encoded
in pieces, so that no text, however long, takes much memory.
"""

import json
import os
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

from prep.readers.documents import find_offsets
from prep.tokenizer.library import catching
from prep.tokenizer.pieces import cut_text, find_cuts
from prep.tokenizer.specials import hide_specials
from shards.format import Int64
from shards.tokenizer import count_ids, encode_plainly, parse_tokenizer, read_tokenizer_json
from shards.widths import Tokens, choose_token_bytes, token_dtype

Ids = npt.NDArray[np.uint32]


# Documents encoded at a time: few, so that their texts stay in the processor's cache.
GROUP_DOCUMENTS = 256
# Texts longer than this are encoded in pieces of about this size.
PIECE_BYTES = 4 << 20
# About how much of a text is encoded again to compare; none if no cut is near.
CHECKED_BYTES = 64 << 10


class Encoder:
    """Encodes Arrow arrays of texts with one of ENCODERS; a special token in a text stays text."""

    def __init__(self, tokenizer_json: str, name: str) -> None:
        self.name = name
        original = parse_tokenizer(tokenizer_json)
        self.vocab_size, plain = count_ids(original), list_plain(original)
        self.dtype = token_dtype(choose_token_bytes(self.vocab_size))
        raw = json.loads(tokenizer_json)
        hidden = hide_specials(raw)
        encoding_json = tokenizer_json if hidden is raw else json.dumps(hidden)
        self.reference = load_reference(encoding_json)
        if list_plain(self.reference) != plain:
            raise ValueError(
                "the tokenizer numbers its added tokens otherwise once special ones are hidden; "
                "choose another tokenizer, and report this"
            )
        self.fast = load_fastokens(encoding_json) if name == "fastokens" else None
        self.cuts = find_cuts(hidden)

    def encode(self, texts: pa.Array) -> tuple[Tokens, Int64]:
        """The ids of non-null `texts`, concatenated, and how many each text has.

        Raises LibraryError if the library cannot encode one of them.
        """
        ids: list[Ids | Tokens] = [np.empty(0, self.dtype)]
        sizes = np.zeros(len(texts), np.int64)
        if (np.diff(find_offsets(texts)) <= PIECE_BYTES).all():
            for start in range(0, len(texts), GROUP_DOCUMENTS):
                group = slice(start, start + GROUP_DOCUMENTS)
                found, sizes[group] = self._encode_strings(texts[group].to_pylist())
                ids.append(found)
        else:
            for index, text in enumerate(texts):
                for piece in cut_text(text.as_buffer(), PIECE_BYTES, self.cuts):
                    found, _ = self._encode_strings([piece])
                    ids.append(found.astype(self.dtype))
                    sizes[index] += len(found)
        return np.concatenate(ids, dtype=self.dtype, casting="unsafe"), sizes

    def _encode_strings(self, texts: list[str]) -> tuple[Ids, Int64]:
        with catching():
            if self.fast is None:
                ids, sizes = call_reference(self.reference, texts)
            else:
                ids, sizes = call_fastokens(self.fast, texts)
        check_range(ids, self.vocab_size)
        return ids, sizes

    def find_difference(self, text: bytes, ids: Tokens) -> int | None:
        """The place of the first id that differs from the reference's; None if none does.

        Only the beginning of a long text is compared, and nothing of one that cannot be cut.
        """
        piece = next(cut_text(text, CHECKED_BYTES, self.cuts))
        num_bytes = len(piece.encode("utf-8"))
        if num_bytes > 2 * CHECKED_BYTES:
            return None
        with catching():
            found = encode_plainly(self.reference, piece)
        expected = np.array(found, np.int64)
        if num_bytes < len(text):
            ids = ids[: len(expected)]
        shared = min(len(ids), len(expected))
        different = np.flatnonzero(ids[:shared] != expected[:shared])
        if len(different):
            return int(different[0])
        return None if len(ids) == len(expected) else shared


def load_encoder(path: Path, name: str) -> Encoder:
    """The encoder of the set whose tokenizer.json is at `path`."""
    return build_encoder(read_tokenizer_json(path), name)


@lru_cache(maxsize=1)
def build_encoder(tokenizer_json: str, name: str) -> Encoder:
    """The encoder of a tokenizer.json's text, one per process: it loads slowly and caches words."""
    return Encoder(tokenizer_json, name)


def load_reference(tokenizer_json: str) -> Tokenizer:
    """Load `tokenizers`, without threads of its own: a worker has one core."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with catching():
        return parse_tokenizer(tokenizer_json)


def list_plain(tokenizer: Tokenizer) -> dict[int, str]:
    """The added tokens that text can become, by their ids."""
    added = tokenizer.get_added_tokens_decoder()
    return {i: token.content for i, token in added.items() if not token.special}


def load_fastokens(tokenizer_json: str) -> Any:
    """Load the fast encoder, on one thread: a worker has one core."""
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
    import fastokens

    with catching():
        return fastokens.Tokenizer.from_json_str(tokenizer_json)


def call_reference(tokenizer: Tokenizer, texts: list[str]) -> tuple[Ids, Int64]:
    """The ids of texts, concatenated, and how many each has, from `tokenizers`."""
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    lists = [encoding.ids for encoding in encodings]
    sizes = np.fromiter(map(len, lists), np.int64, len(lists))
    return np.fromiter(chain.from_iterable(lists), np.uint32, int(sizes.sum())), sizes


def call_fastokens(tokenizer: Any, texts: list[str]) -> tuple[Ids, Int64]:
    """The same from `fastokens`."""
    id_bytes, offset_bytes = tokenizer.encode_batch_flat(texts, split_special_tokens=True)
    offsets = np.frombuffer(offset_bytes, "<u8").astype(np.int64)
    return np.frombuffer(id_bytes, "<u4"), offsets[1:] - offsets[:-1]


def check_range(ids: Ids, vocab_size: int) -> None:
    """Raise ValueError for an id that the vocabulary does not have."""
    if len(ids) and int(ids.max()) >= vocab_size:
        raise ValueError(
            f"the tokenizer gave the id {int(ids.max())}; expected 0 to {vocab_size - 1}"
        )
