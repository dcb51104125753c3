"""Source files as batches of documents: .parquet, .jsonl (also .gz and .zst) and .txt.

A file is read as a stream, in batches of bounded size, and what cannot be read is one error that
names the file and says what to do.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from prep.lines import CODECS, Document, read_blocks, read_json_lines, read_whole, split_lines
from prep.parquet import measure_column, read_columns, split_row_groups

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")

MAX_BATCH_DOCUMENTS = 1000
MAX_BATCH_BYTES = 8 << 20
# Compressed text is about a quarter of its size.
COMPRESSION_RATIO = 4


@dataclass(frozen=True)
class Piece:
    """A part of a source file that is read in one go; a large file is several."""

    path: str  # where to open it
    name: str  # what the data set calls it
    start: int = 0  # parquet: first row group; .jsonl: first byte, where a line starts; else 0
    stop: int | None = None  # the end, exclusive, in the same unit; None = to the end
    first_row: int = 0  # the source row of the piece's first document


class Documents(NamedTuple):
    """A batch of documents, in the order of their file."""

    texts: list[str | None]  # valid Unicode; None = null in the source
    urls: list[str | None]
    rows: list[int]  # parquet: row; .jsonl: line; .txt: block; all counted from 0
    repaired: list[bool]  # whether U+FFFD stands for something that was invalid in the text
    num_bytes: int  # of the texts in UTF-8

    @property
    def num_repaired(self) -> int:
        """How many texts were not valid as they stood."""
        return sum(self.repaired)


def read_documents(
    piece: Piece, text_column: str, blank_line_documents: bool = False
) -> Iterator[Documents]:
    """Yield a piece's documents, at most 1000 at a time, and fewer once they make 8 MB.

    `text_column` is a parquet file's column, or the key in the object on each line; `url` beside it
    is taken along where it is text. A .txt is one document, or with `blank_line_documents` one for
    each block between blank lines. A byte order mark at the start of a .jsonl or .txt is dropped.

    Raises ValueError or OSError, in one line that names the file (and the line), for a file that is
    missing, cut short, damaged, or does not hold what its name or `text_column` says.
    """
    path = Path(piece.path)
    suffix = find_suffix(path)
    with _naming_errors(path):
        if suffix == ".parquet":
            yield from _read_parquet(piece, text_column)
        elif suffix == ".txt":
            yield from _batch(read_blocks(path) if blank_line_documents else read_whole(path))
        else:
            place = (piece.start, piece.stop, piece.first_row)
            yield from _batch(read_json_lines(path, suffix, text_column, *place))


def split_file(path: Path, name: str, max_bytes: int) -> list[Piece]:
    """Cut a file into pieces of about `max_bytes` on disk, where its format allows it.

    A parquet file is cut between row groups, a plain .jsonl between lines; the others stay whole.
    Reading the pieces one after the other is reading the file.
    """
    suffix = find_suffix(path)
    cuts: list[tuple[int, int, int]] = []
    with _naming_errors(path):
        num_pieces = math.ceil(path.stat().st_size / max_bytes)
        if num_pieces > 1 and suffix == ".parquet":
            cuts = split_row_groups(path, max_bytes)
        elif num_pieces > 1 and suffix == ".jsonl":
            cuts = split_lines(path, num_pieces)
    if len(cuts) < 2:
        return [Piece(str(path), name)]
    return [Piece(str(path), name, *cut) for cut in cuts]


def estimate_text_bytes(path: Path, text_column: str) -> int:
    """Estimate the bytes of text in a file, from its size or, for parquet, from its footer."""
    suffix = find_suffix(path)
    with _naming_errors(path):
        if suffix == ".parquet":
            return measure_column(path, text_column)
        return path.stat().st_size * (COMPRESSION_RATIO if suffix in CODECS else 1)


def find_suffix(path: Path) -> str:
    """Return the suffix that tells a file's format; ValueError where it is none of ours."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return suffix
    raise ValueError(f"{path}: unknown kind of file; expected {', '.join(SUFFIXES)}")


@contextmanager
def _naming_errors(path: Path) -> Iterator[None]:
    """Put the file's name, and what to do, into the errors of the libraries that read it."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened ({error.strerror})") from None
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{path}: damaged, cut short, or not what its name says ({reason}); "
            "copy or download it again, or leave it out"
        ) from error


def _read_parquet(piece: Piece, text_column: str) -> Iterator[Documents]:
    row = piece.first_row
    for texts, urls in read_columns(
        Path(piece.path), text_column, piece.start, piece.stop, MAX_BATCH_DOCUMENTS, MAX_BATCH_BYTES
    ):
        rows = list(range(row, row + len(texts.values)))
        row += len(rows)
        yield Documents(texts.values, urls.values, rows, texts.repaired, texts.num_bytes)


def _batch(documents: Iterable[Document]) -> Iterator[Documents]:
    """Collect documents into batches."""
    batch: list[Document] = []
    num_bytes = 0
    for document in documents:
        batch.append(document)
        num_bytes += _count_utf8_bytes(document.text or "")
        if len(batch) == MAX_BATCH_DOCUMENTS or num_bytes >= MAX_BATCH_BYTES:
            yield _transpose(batch, num_bytes)
            batch, num_bytes = [], 0
    if batch:
        yield _transpose(batch, num_bytes)


def _transpose(batch: list[Document], num_bytes: int) -> Documents:
    texts, urls, rows, repaired = map(list, zip(*batch, strict=True))
    return Documents(texts, urls, rows, repaired, num_bytes)


def _count_utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8"))
