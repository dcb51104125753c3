"""A batch of documents -> tokens with the end token after each, and the sidecar's rows."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prep.readers.documents import Documents, find_offsets
from prep.tokenizer.encoder import Encoder
from prep.tokenizer.identity import SetTokenizer
from prep.tokenizer.library import LibraryError
from shards.format import Int64
from shards.sidecar import HASH_BYTES, make_rows
from shards.widths import Tokens, token_dtype
from shards.writer import join_runs

# One document in this many is encoded again with the reference.
CHECKED_ONE_IN = 8192
SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class EncodedBatch:
    """Documents with their tokens, in order; `tokens` is their concatenation."""

    tokens: Tokens
    rows: pa.RecordBatch  # of ROWS_SCHEMA
    # Where each document's tokens end in `tokens`.
    ends: Int64
    is_validation: npt.NDArray[np.bool_]
    # Of each document's text, in UTF-8.
    num_bytes: Int64

    def first(self, num_documents: int) -> "EncodedBatch":
        """The batch cut after its first `num_documents` kept documents."""
        ends = self.ends[:num_documents]
        return EncodedBatch(
            self.tokens[: ends[-1] if num_documents else 0],
            self.rows.slice(0, num_documents),
            ends,
            self.is_validation[:num_documents],
            self.num_bytes[:num_documents],
        )

    def choose_checked(self, unchecked_sides: Collection[bool]) -> list[int]:
        """Documents to encode again: some by their hash, and the first on each given side."""
        hashes = np.frombuffer(self.rows.column("doc_hash").buffers()[1], ">u8")
        chosen = hashes[1 : 2 * len(self.rows) : 2] < (1 << 64) // CHECKED_ONE_IN
        for side in unchecked_sides:
            chosen[np.flatnonzero(self.is_validation == side)[:1]] = True
        return np.flatnonzero(chosen).tolist()

    def split(self, validation: bool) -> tuple[Tokens, pa.RecordBatch]:
        """The tokens and rows of the documents on one side of the train-validation split."""
        chosen = self.is_validation == validation
        rows = self.rows if chosen.all() else self.rows.filter(pa.array(chosen))
        return join_runs(self.tokens, self.ends, chosen), rows


def encode_batch(
    encoder: Encoder,
    documents: Documents,
    source_files: pa.Array,
    validation_threshold: int,
    tokenizer: SetTokenizer,
    name: Callable[[int], str],
    kept: Mapping[str, pa.Array] = MappingProxyType({}),
) -> EncodedBatch:
    """Tokenize a batch of documents that all have text, of the files that are named.

    `name` is what to call one of them in a message, and `kept` the columns that stay beside them.
    """
    texts = documents.texts
    hashes = hash_texts(texts)
    try:
        ids, sizes = encoder.encode(texts)
    except LibraryError as error:
        index = find_unreadable(encoder, texts)
        raise ValueError(
            f"{name(index)}: the tokenizer cannot encode "
            f"{texts[index].as_py()[:SHOWN_CHARACTERS]!r} ({error}); choose another tokenizer, or "
            "leave the document out"
        ) from None
    sizes = sizes + tokenizer.num_before + 1
    ends = np.cumsum(sizes)
    return EncodedBatch(
        join_documents(ids, ends, tokenizer),
        make_rows(sizes, source_files, documents.rows, documents.urls, hashes, kept),
        ends,
        choose_validation(hashes, validation_threshold),
        documents.num_bytes,
    )


def take_chats(
    documents: Documents,
    source_files: pa.Array,
    validation_threshold: int,
    token_bytes: int,
    ids: pa.Array,
    columns: Mapping[str, pa.Array],
) -> EncodedBatch:
    """A batch of chats, which have their tokens; `columns` stay beside them."""
    hashes = hash_texts(documents.texts)
    sizes = pc.list_value_length(ids).to_numpy(zero_copy_only=False).astype(np.int64)
    tokens = ids.flatten().to_numpy().astype(token_dtype(token_bytes))
    return EncodedBatch(
        tokens,
        make_rows(sizes, source_files, documents.rows, documents.urls, hashes, columns),
        np.cumsum(sizes),
        choose_validation(hashes, validation_threshold),
        documents.num_bytes,
    )


def find_unreadable(encoder: Encoder, texts: pa.Array) -> int:
    """The first of the texts that the tokenizer cannot encode."""
    for index in range(len(texts)):
        try:
            encoder.encode(texts[index : index + 1])
        except LibraryError:
            return index
    raise AssertionError("all of them were encoded")


def check_encoding(
    encoder: Encoder, texts: pa.Array, batch: EncodedBatch, chosen: Iterable[int], num_before: int
) -> None:
    """Encode the chosen documents of a batch again, with the reference; `texts` are the batch's.

    In the batch, `num_before` tokens are before each document's text. Raises ValueError, quoting
    the document, if the ids differ.
    """
    starts = np.append(0, batch.ends) + num_before
    for index in chosen:
        content = texts[index].as_buffer()
        place = encoder.find_difference(
            content, batch.tokens[starts[index] : batch.ends[index] - 1]
        )
        if place is not None:
            row = batch.rows.slice(index, 1).to_pylist()[0]
            shown = content.to_pybytes().decode("utf-8")[:SHOWN_CHARACTERS]
            raise ValueError(
                f"{row['source_file']}, row {row['source_row']}: {encoder.name} differs from "
                f"`tokenizers` from token {place:,} on, for the document {shown!r}; "
                "none of it was kept: run the same command with --encoder tokenizers, and "
                "report this"
            )


def join_documents(ids: Tokens, ends: Int64, tokenizer: SetTokenizer) -> Tokens:
    """The documents' ids with the tokens that go around each, so that they end at `ends`."""
    num_tokens = int(ends[-1]) if len(ends) else 0
    tokens: Tokens = np.full(num_tokens, tokenizer.end_of_text, token_dtype(tokenizer.token_bytes))
    is_text = np.ones(num_tokens, np.bool_)
    is_text[ends - 1] = False
    if tokenizer.begin_of_text is not None:
        starts = np.append(0, ends)[:-1]
        tokens[starts] = tokenizer.begin_of_text
        is_text[starts] = False
    tokens[is_text] = ids
    return tokens


def hash_texts(texts: pa.Array) -> bytes:
    """The doc_hashes, concatenated: the first half of the sha256 of each text in UTF-8."""
    data = memoryview(texts.buffers()[2] or b"")
    hashes = [
        hashlib.sha256(data[start:stop]).digest()[:HASH_BYTES]
        for start, stop in pairwise(find_offsets(texts).tolist())
    ]
    return b"".join(hashes)


def choose_validation(hashes: bytes, threshold: int) -> npt.NDArray[np.bool_]:
    """Which documents belong to validation: by their text alone, so copies are never separated.

    >>> choose_validation(bytes(16) + b"\\xff" * 16, threshold=2**63).tolist()
    [True, False]
    """
    first_bits = np.frombuffer(hashes, ">u8")[::2]
    return first_bits < np.uint64(threshold)
