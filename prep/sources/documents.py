"""Source files as batches of documents: .parquet, .jsonl (also .gz and .zst) and .txt.

A file is read as a stream, in batches of bounded size, and what cannot be read is one error that
names the file and says what to do.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prep.sources.lines import (
    CODECS,
    Document,
    check_size,
    read_blocks,
    read_json_lines,
    read_whole,
    split_lines,
)
from prep.sources.parquet import make_valid, measure_column, read_columns, split_row_groups
from prep.sources.stamp import Stamp

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")

MAX_BATCH_DOCUMENTS = 1000
MAX_BATCH_BYTES = 8 << 20
MAX_ROW_GROUPS = 1 << 31
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
    # What the file looks like as long as it is the one that was planned; None = of no interest.
    stamp: Stamp | None = field(default=None, compare=False)


class Documents(NamedTuple):
    """A batch of documents, in the order of their file: as Arrow arrays, never a list of texts."""

    texts: pa.Array  # large_string, valid UTF-8; null = null in the source
    urls: pa.Array  # string, or null
    rows: npt.NDArray[np.int64]  # parquet: row; .jsonl: line; .txt: block; all counted from 0
    repaired: npt.NDArray[np.bool_]  # whether U+FFFD stands for what was invalid in the text
    columns: dict[str, pa.Array]  # what else was asked for

    @property
    def num_bytes(self) -> npt.NDArray[np.int64]:
        """The size of each text in UTF-8; 0 for null."""
        offsets = find_offsets(self.texts)
        sizes = offsets[1:] - offsets[:-1]
        if self.texts.null_count:
            sizes[self.texts.is_null().to_numpy(zero_copy_only=False)] = 0
        return sizes

    def filter(self, kept: npt.NDArray[np.bool_]) -> "Documents":
        """The documents that `kept` marks."""
        mask = pa.array(kept)
        return Documents(
            self.texts.filter(mask),
            self.urls.filter(mask),
            self.rows[kept],
            self.repaired[kept],
            {name: values.filter(mask) for name, values in self.columns.items()},
        )

    def first(self, count: int) -> "Documents":
        """The first `count` documents."""
        return Documents(
            self.texts[:count],
            self.urls[:count],
            self.rows[:count],
            self.repaired[:count],
            {name: values[:count] for name, values in self.columns.items()},
        )


def find_offsets(texts: pa.Array) -> npt.NDArray[np.int64]:
    """Where each text begins in the array's buffer of bytes, and where the last one ends."""
    offsets = np.frombuffer(texts.buffers()[1], np.int64)
    return offsets[texts.offset : texts.offset + len(texts) + 1]


def read_documents(
    piece: Piece, text_column: str, blank_line_documents: bool = False, columns: Sequence[str] = ()
) -> Iterator[Documents]:
    """Yield a piece's documents, at most 1000 at a time, and fewer once they make 8 MB.

    `text_column` is a parquet file's column, or the key in the object on each line; `url` beside it
    is taken along where it is text, and `columns` whatever they hold. A .txt is one document, or
    with `blank_line_documents` one for each block between blank lines. A byte order mark at the
    start of a .jsonl or .txt is dropped.

    Raises ValueError or OSError, in one line that names the file (and the line), for a file that is
    missing, cut short, damaged, or does not hold what its name or `text_column` says.
    """
    path = Path(piece.path)
    suffix = find_suffix(path)
    with _naming_errors(path):
        if suffix == ".parquet":
            yield from _read_parquet(piece, text_column, columns)
        elif suffix == ".txt":
            if columns:
                raise ValueError(f"{path}: is text without columns, so there is no {columns[0]!r}")
            yield from _batch(read_blocks(path) if blank_line_documents else read_whole(path))
        else:
            place = (piece.start, piece.stop, piece.first_row)
            yield from _batch(read_json_lines(path, suffix, text_column, columns, *place), columns)


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
    except _MixedTypesError as error:
        raise ValueError(f"{path}: {error}; expected one, to compare it with --where") from None
    except (OSError, pa.ArrowException) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{path}: damaged, cut short, or not what its name says ({reason}); "
            "copy or download it again, or leave it out"
        ) from error


def _read_parquet(piece: Piece, text_column: str, columns: Sequence[str]) -> Iterator[Documents]:
    row = piece.first_row
    for texts, urls, others in read_columns(
        Path(piece.path),
        text_column,
        columns,
        range(piece.start, MAX_ROW_GROUPS if piece.stop is None else piece.stop),
        MAX_BATCH_DOCUMENTS,
        MAX_BATCH_BYTES,
    ):
        rows = np.arange(row, row + len(texts))
        row += len(rows)
        valid_texts, repaired = make_valid(texts)
        valid_urls = make_valid(urls)[0].cast(pa.string())
        documents = Documents(valid_texts, valid_urls, rows, repaired, others)
        largest = int(documents.num_bytes.argmax())
        advice = f"in {text_column!r} a row is a document"
        check_size(int(documents.num_bytes[largest]), f"{piece.path}, row {rows[largest]}", advice)
        yield documents


def _batch(documents: Iterable[Document], columns: Sequence[str] = ()) -> Iterator[Documents]:
    """Collect documents into batches."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        text = document.text
        # Characters or bytes: either keeps a batch from growing without end.
        size += text.as_buffer().size if isinstance(text, pa.Scalar) else len(text or "")
        if len(batch) == MAX_BATCH_DOCUMENTS or size >= MAX_BATCH_BYTES:
            transposed = _transpose(batch, columns)
            del document, text  # Large texts are not held twice while they are encoded.
            batch, size = [], 0
            yield transposed
            del transposed
    if batch:
        yield _transpose(batch, columns)


def _transpose(batch: list[Document], columns: Sequence[str]) -> Documents:
    texts, urls, rows, repaired, others = zip(*batch, strict=True)
    return Documents(
        pa.array(texts, pa.large_string()),
        pa.array(urls, pa.string()),
        np.array(rows, np.int64),
        np.array(repaired, np.bool_),
        {name: _unite(name, [row[i] for row in others]) for i, name in enumerate(columns)},
    )


def _unite(name: str, values: list[Any]) -> pa.Array:
    """The values of a key as an array of one type."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        if {type(value) for value in values} <= {int, float, type(None)}:  # Beyond 64 bits.
            return pa.array([None if value is None else float(value) for value in values])
        raise _MixedTypesError(f"the key {name!r} holds values of several types") from None


class _MixedTypesError(ValueError):
    """Values of a key that have no type in common."""
