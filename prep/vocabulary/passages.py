"""The text that a tokenizer is trained on and measured on, read as passages.

A passage is a document, or a part of about 64 KB of a longer one: a book in one file is many.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prep.files.stamp import expect_unchanged
from prep.readers.documents import BadDocument, Piece, find_offsets
from prep.readers.formats import read_documents
from prep.sources.local import Source
from prep.text.batch import hash_texts
from prep.vocabulary.request import TrainRequest
from shards.format import Int64

PASSAGE_BYTES = 1 << 16
# Where a long document is cut: before a line or, if the line is long as well, before a word, else
# before any character.
CUTS = (
    re.compile(rb"\n(?=[^\n])"),
    re.compile(rb"(?= )"),
    re.compile(rb"(?=[\x00-\x7f\xc0-\xff])"),
)


@dataclass(frozen=True)
class Passages:
    """A batch of passages."""

    texts: pa.Array  # large_string, neither null nor empty
    # The first 64 bits of each text's sha256. Of a whole document, those by which prep chooses
    # validation: the lowest are held out here, and validation there.
    hashes: npt.NDArray[np.uint64]
    sizes: Int64  # in bytes

    def choose(self, chosen: npt.NDArray[np.bool_]) -> list[str]:
        """The texts that are marked."""
        texts: list[str] = self.texts.filter(pa.array(chosen)).to_pylist()
        return texts


@dataclass
class LeftOut:
    """What could not be read and was left out, as --on-bad-document skip says."""

    num_documents: int = 0
    files: list[str] = field(default_factory=list)


def read_passages(
    source: Source, request: TrainRequest, left_out: LeftOut | None = None
) -> Iterator[Passages]:
    """The passages of a file, in order. Raises ValueError or OSError as the readers do."""
    piece = Piece(source.path, source.name, stamp=source.stamp)
    left_out = LeftOut() if left_out is None else left_out
    with expect_unchanged(source.path, source.stamp):
        try:
            for documents in read_documents(
                piece,
                request.text_column,
                request.blank_line_documents,
                skips_bad=request.skips_bad,
            ):
                left_out.num_documents += len(documents.bad)
                if len(texts := cut_long(documents.texts)):
                    yield make_passages(texts)
        except BadDocument:
            if not request.skips_bad:
                raise
            left_out.files.append(source.name)


def make_passages(texts: pa.Array) -> Passages:
    """Texts with their hashes and sizes."""
    hashes = np.frombuffer(hash_texts(texts), ">u8")[::2].astype(np.uint64)
    return Passages(texts, hashes, np.diff(find_offsets(texts)))


def cut_long(texts: pa.Array) -> pa.Array:
    """The texts without null and empty ones; a long one is cut into passages."""
    sizes = pc.fill_null(pc.binary_length(texts), 0)
    texts = texts.filter(pc.greater(sizes, 0))
    if (pc.max(sizes).as_py() or 0) <= PASSAGE_BYTES:
        return texts
    cut = [passage for text in texts for passage in cut_text(text.as_buffer().to_pybytes())]
    return pa.array(cut, pa.large_binary()).cast(pa.large_string())


def cut_text(text: bytes) -> Iterator[bytes]:
    """Yield a text in passages of about PASSAGE_BYTES."""
    start = 0
    while len(text) - start > PASSAGE_BYTES:
        aim = start + PASSAGE_BYTES
        ends = (cut.search(text, aim, aim + PASSAGE_BYTES) for cut in CUTS)
        found = next(end for end in ends if end)
        yield text[start : found.end()]
        start = found.end()
    if start < len(text):
        yield text[start:]


def choose_files(sources: Sequence[Source], estimates: Sequence[int], wanted: int) -> list[Source]:
    """Files that hold about `wanted` bytes of text, chosen by a hash of their names; in order."""
    names = pa.array([source.name for source in sources], pa.large_string())
    order = np.argsort(make_passages(names).hashes, kind="stable")
    before = np.cumsum(np.array(estimates)[order]) - np.array(estimates)[order]
    chosen = sorted(order[before < wanted].tolist())
    return [sources[place] for place in chosen]
