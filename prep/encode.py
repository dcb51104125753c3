"""A batch of texts -> uint16 tokens with <|endoftext|> behind every document, and its rows."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from prep.documents import Documents
from shards.writer import DocumentRows, Tokens

HASH_BYTES = 16


@dataclass(frozen=True)
class EncodedBatch:
    """The kept documents of a batch, in order; `tokens` is their concatenation."""

    tokens: Tokens
    rows: DocumentRows
    is_validation: npt.NDArray[np.bool_]
    # Of each kept document's text, in UTF-8.
    num_bytes: npt.NDArray[np.int64]
    # How many documents of the batch had been read when each kept one had; for exact stops.
    num_read: npt.NDArray[np.int64]

    def first(self, num_documents: int) -> "EncodedBatch":
        """The batch cut behind its first `num_documents` kept documents."""
        num_tokens = int(self.rows.num_tokens[:num_documents].sum())
        return EncodedBatch(
            self.tokens[:num_tokens],
            self.rows.slice(0, num_documents),
            self.is_validation[:num_documents],
            self.num_bytes[:num_documents],
            self.num_read[:num_documents],
        )

    def split(self, validation: bool) -> tuple[Tokens, DocumentRows]:
        """The tokens and rows of the documents on one side of the train-validation split."""
        chosen = self.is_validation == validation
        if chosen.all():
            return self.tokens, self.rows
        rows = self.rows
        places = np.flatnonzero(chosen).tolist()
        return self.tokens[np.repeat(chosen, rows.num_tokens)], DocumentRows(
            rows.num_tokens[chosen],
            [rows.source_file[place] for place in places],
            [rows.source_row[place] for place in places],
            [rows.url[place] for place in places],
            [rows.doc_hash[place] for place in places],
        )


def encode_batch(
    tokenizer: Tokenizer,
    documents: Documents,
    source_file: str,
    validation_threshold: int,
    end_of_text: int,
) -> EncodedBatch:
    """Tokenize a batch; null and empty texts are left out (the caller counts them)."""
    places = [place for place, text in enumerate(documents.texts) if text]
    texts = [text for text in documents.texts if text]
    contents = [text.encode("utf-8") for text in texts]
    hashes = [hash_content(content) for content in contents]
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    num_tokens = np.fromiter((len(document) + 1 for document in ids), np.int64, len(ids))
    rows = DocumentRows(
        num_tokens,
        [source_file] * len(texts),
        [documents.rows[place] for place in places],
        [documents.urls[place] for place in places],
        hashes,
    )
    return EncodedBatch(
        join_documents(ids, num_tokens, tokenizer.get_vocab_size(), end_of_text),
        rows,
        choose_validation(hashes, validation_threshold),
        np.fromiter(map(len, contents), np.int64, len(contents)),
        np.array(places, np.int64) + 1,
    )


def join_documents(
    ids: list[list[int]], num_tokens: npt.NDArray[np.int64], vocab_size: int, end_of_text: int
) -> Tokens:
    """Concatenate documents with <|endoftext|> behind each; ids are range-checked, then cast."""
    tokens = np.full(int(num_tokens.sum()), end_of_text, np.int64)
    is_text = np.ones(len(tokens), np.bool_)
    is_text[np.cumsum(num_tokens) - 1] = False
    if ids:
        tokens[is_text] = np.concatenate([np.array(document, np.int64) for document in ids])
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < min(vocab_size, 1 << 16):
        raise ValueError(
            f"the tokenizer gave the id {int(tokens.max())}; expected 0 to {vocab_size - 1}, "
            "which must fit in 16 bits"
        )
    return tokens.astype(np.uint16)


def hash_content(content: bytes) -> bytes:
    """A document's doc_hash: the first half of the sha256 of its text in UTF-8."""
    return hashlib.sha256(content).digest()[:HASH_BYTES]


def choose_validation(hashes: list[bytes], threshold: int) -> npt.NDArray[np.bool_]:
    """Which documents belong to validation: by their text alone, so copies never part.

    >>> choose_validation([bytes(16), b"\\xff" * 16], threshold=2**63).tolist()
    [True, False]
    """
    first_bits = np.frombuffer(b"".join(hashes), ">u8")[::2]
    return first_bits < np.uint64(threshold)
