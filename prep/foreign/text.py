"""The text of imported ids: its hash, its size, and whether the ids are the tokenizer's."""

import codecs
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prep.foreign.documents import FoundDocuments
from prep.foreign.files import INSTEAD
from prep.tokenizer.encoder import Encoder
from prep.tokenizer.identity import SetTokenizer
from shards.format import Int64
from shards.sidecar import HASH_BYTES
from shards.tokenizer import encode_plainly, load_spelling
from shards.widths import Tokens

# Tokens that are turned into text at a time: more would leave the processor's cache.
PIECE_TOKENS = 1 << 16
# Documents of each file that are encoded again, and tokens of each.
SAMPLED_DOCUMENTS = 32
SAMPLED_TOKENS = 512
# If a document is cut for this, its last tokens may come out differently.
CUT_TOKENS = 32


@dataclass(frozen=True)
class TextFacts:
    """The hash, size and validity of the text of each document in a batch."""

    # The doc_hashes, concatenated.
    hashes: bytes
    # In UTF-8.
    num_bytes: Int64
    is_utf8: npt.NDArray[np.bool_]


class TextReader:
    """Turns ids into the bytes that they stand for."""

    def __init__(self, tokenizer_path: Path, tokenizer: SetTokenizer) -> None:
        self.name = tokenizer.name
        # Where the text of a document begins in its tokens.
        self.num_before = tokenizer.num_before
        self.spelling = load_spelling(
            tokenizer_path, tokenizer.end_of_text, tokenizer.begin_of_text
        )
        if not self.spelling.adds_up:
            raise ValueError(
                f"the tokenizer ({self.name}) decodes a document only as a whole, so ids alone "
                f"cannot be imported: {INSTEAD}"
            )

    def examine(self, tokens: Tokens, ends: Int64) -> TextFacts:
        """Hash the text of each document; special tokens stand for no bytes."""
        hashes: list[bytes] = []
        num_bytes = np.empty(len(ends), np.int64)
        is_utf8 = np.empty(len(ends), np.bool_)
        document, start = 0, 0
        while document < len(ends):
            last = int(np.searchsorted(ends, start + PIECE_TOKENS, side="right"))
            if last == document:
                last = document + 1
                content = tokens[start : ends[document]]
                digest, num_bytes[document], is_utf8[document] = self._examine_long(content)
                hashes.append(digest)
            else:
                stop = int(ends[last - 1])
                places = np.append(0, ends[document:last] - start)
                firsts = np.minimum(places[:-1] + self.num_before, places[1:] - 1)
                bounds, data = self.spelling.join_bytes(tokens[start:stop], firsts)
                bounds = bounds[places]
                view = memoryview(data)
                hashes += [
                    hashlib.sha256(view[a:b]).digest()[:HASH_BYTES]
                    for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
                ]
                num_bytes[document:last] = np.diff(bounds)
                is_utf8[document:last] = check_utf8(bounds, data)
            document, start = last, int(ends[last - 1])
        return TextFacts(b"".join(hashes), num_bytes, is_utf8)

    def _examine_long(self, tokens: Tokens) -> tuple[bytes, int, bool]:
        """A long document's hash, bytes, and whether it is UTF-8, piece by piece."""
        sha256 = hashlib.sha256()
        decoder = codecs.getincrementaldecoder("utf-8")()
        num_bytes, is_utf8 = 0, True
        for start in range(0, len(tokens), PIECE_TOKENS):
            firsts = np.arange(self.num_before, self.num_before + (start == 0))
            piece = tokens[start : start + PIECE_TOKENS]
            content = memoryview(self.spelling.join_bytes(piece, firsts)[1])
            sha256.update(content)
            num_bytes += len(content)
            try:
                if is_utf8:
                    decoder.decode(content, final=start + PIECE_TOKENS >= len(tokens))
            except UnicodeDecodeError:
                is_utf8 = False
        return sha256.digest()[:HASH_BYTES], num_bytes, is_utf8


def check_utf8(bounds: Int64, data: pa.Buffer) -> npt.NDArray[np.bool_]:
    """Whether the bytes between each two bounds are UTF-8."""
    offsets = pa.py_buffer(bounds.astype(np.int32))
    texts = pa.Array.from_buffers(pa.binary(), len(bounds) - 1, [None, offsets, data])
    try:
        texts.cast(pa.string())
        return np.ones(len(texts), np.bool_)
    except pa.ArrowInvalid:
        return np.array([is_text(text.as_buffer().to_pybytes()) for text in texts], np.bool_)


def is_text(content: bytes) -> bool:
    """Whether bytes are UTF-8."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class OriginCheck:
    """Checks that a file's ids are the tokenizer's: some are turned into text and encoded again.

    Ids of another tokenizer with no more of them decode to something too, but this one never
    encodes it to the same ids.
    """

    def __init__(self, reader: TextReader, encoder: Encoder) -> None:
        self.reader = reader
        # To it, text that spells a special token is text, as it is in a set.
        self.encoder = encoder
        # Of a text alone no special token comes.
        self.special = list(reader.spelling.special)
        self.sampled: dict[str, int] = {}
        self.num_tokens: dict[str, int] = {}
        self.num_same: dict[str, int] = {}

    def sample(self, found: FoundDocuments) -> None:
        """Look at some documents, until enough of their file have been seen.

        Raises ValueError if fewer than half of the tokens then come out the same.
        """
        name = found.file.name
        left = SAMPLED_DOCUMENTS - self.sampled.get(name, 0)
        if left <= 0:
            return
        starts = np.append(0, found.ends[:-1])
        chosen = np.flatnonzero(found.ends - starts > 1)
        chosen = chosen[:: max(len(chosen) // left, 1)][:left]
        for document in chosen.tolist():
            ids = found.tokens[starts[document] : found.ends[document] - 1]
            ids = ids[~np.isin(ids, self.special)]
            same = self._encode_again(ids)
            self.num_tokens[name] = self.num_tokens.get(name, 0) + min(len(ids), SAMPLED_TOKENS)
            self.num_same[name] = self.num_same.get(name, 0) + same
        self.sampled[name] = self.sampled.get(name, 0) + len(chosen)
        if self.sampled[name] >= SAMPLED_DOCUMENTS:
            self.judge(found.file.name, str(found.file.path))

    def judge(self, name: str, path: str) -> None:
        """ValueError if the ids of a file, as far as sampled, are another tokenizer's."""
        same, total = self.num_same.get(name, 0), self.num_tokens.get(name, 0)
        if 2 * same < total:
            raise ValueError(
                f"{path}: its ids are not the tokenizer's ({self.reader.name}): of {total:,} that "
                f"were decoded and encoded again, only {same:,} were in documents that came out "
                f"the same: {INSTEAD}"
            )

    def _encode_again(self, ids: Tokens) -> int:
        """How many of a document's first tokens are sampled, if they come out again; else 0."""
        cut = ids[:SAMPLED_TOKENS]
        firsts = np.arange(min(len(cut), 1))
        content = memoryview(self.reader.spelling.join_bytes(cut, firsts)[1]).tobytes()
        again = encode_plainly(self.encoder.reference, content.decode("utf-8", "ignore"))
        kept = len(ids) if len(cut) == len(ids) else SAMPLED_TOKENS - CUT_TOKENS
        is_same = again[:kept] == cut[:kept].tolist() and (
            len(cut) < len(ids) or len(again) == len(ids)
        )
        return len(cut) if is_same else 0
