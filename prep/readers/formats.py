"""Source files as batches of documents: which formats there are, and how each is read.

A file is read as a stream, in batches of bounded size, and what cannot be read is one error that
names the file and says what to do. A new format is a reader, a row of
FORMATS, and its suffix in prep/request.py.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from prep.readers.arrow import measure_arrow_column, read_arrow_columns, split_batches
from prep.readers.columns import make_valid
from prep.readers.documents import MISSING, BadDocument, Documents, Piece
from prep.readers.door import check_readable
from prep.readers.keys import unite
from prep.readers.lines import (
    Document,
    find_excess,
    list_keys,
    read_blocks,
    read_json_lines,
    read_whole,
    split_lines,
)
from prep.readers.parquet import measure_column, read_columns, split_row_groups
from prep.request import JSON_LINES, SUFFIXES

MAX_BATCH_DOCUMENTS = 1000
MAX_BATCH_BYTES = 8 << 20
MAX_ROW_GROUPS = 1 << 31
# Compressed text is about a quarter of its size.
COMPRESSION_RATIO = 4


# First row group, record batch or byte, its end, and the source row of the first document.
Cut = tuple[int, int, int]
# The texts, urls and other columns of a table, in batches: parquet's or Arrow's.
ReadColumns = Callable[
    [Path, str, Sequence[str], range, int, int],
    Iterator[tuple[pa.Array, pa.Array, dict[str, pa.Array]]],
]


@dataclass(frozen=True)
class ReadOptions:
    """What to read from a file."""

    text_column: str
    # Other columns to read, for the filters.
    columns: tuple[str, ...]
    blank_line_documents: bool
    # Whether bad documents are left out, and told by `Documents.bad`; else they are errors.
    skips_bad: bool


@dataclass(frozen=True)
class Format:
    """How the files of one format are read."""

    read: Callable[[Piece, ReadOptions], Iterator[Documents]]
    # About how many bytes of text a file has, in the named column if it has columns.
    estimate: Callable[[Path, str], int]
    # Cuts a file into pieces of about this many bytes; None if files of this format stay whole.
    split: Callable[[Path, int], list[Cut]] | None = None


def read_documents(
    piece: Piece,
    text_column: str,
    blank_line_documents: bool = False,
    columns: Sequence[str] = (),
    skips_bad: bool = False,
) -> Iterator[Documents]:
    """Yield a piece's documents, at most 1000 at a time, and fewer once they make 8 MB.

    `text_column` is a parquet file's column, or the key in the object on each line; `url` beside it
    is read if it is text, and `columns` whatever they hold. A .txt is one document, or
    with `blank_line_documents` one for each block between blank lines. A byte order mark at the
    start of a .jsonl or .txt is dropped.

    Raises ValueError or OSError, in one line that names the file (and the line), for a file that is
    missing, cut short, damaged, or does not hold what its name or `text_column` says. It is a
    BadDocument if the file itself is bad; the documents before that may have been yielded.
    """
    path = Path(piece.path)
    form = find_format(path)
    options = ReadOptions(text_column, tuple(columns), blank_line_documents, skips_bad)
    with _naming_errors(path):
        yield from form.read(piece, options)


def split_file(path: Path, name: str, max_bytes: int) -> list[Piece]:
    """Cut a file into pieces of about `max_bytes` on disk, if its format allows it.

    Reading the pieces one after another is the same as reading the file.
    """
    form = find_format(path)
    cuts: list[Cut] = []
    with _naming_errors(path):
        if form.split is not None and path.stat().st_size > max_bytes:
            cuts = form.split(path, max_bytes)
    if len(cuts) < 2:
        return [Piece(str(path), name)]
    return [Piece(str(path), name, *cut) for cut in cuts]


def estimate_text_bytes(path: Path, text_column: str) -> int:
    """Estimate the bytes of text in a file, from its size or, for parquet, from its footer."""
    form = find_format(path)
    with _naming_errors(path):
        return form.estimate(path, text_column)


def find_format(path: Path) -> "Format":
    """The format that a file's name says; ValueError if it is not one of FORMATS."""
    name = path.name.lower()
    for suffix, form in FORMATS.items():
        if name.endswith(suffix):
            return form
    raise ValueError(f"{path}: unknown kind of file; expected {', '.join(FORMATS)}")


@contextmanager
def _naming_errors(path: Path) -> Iterator[None]:
    """Put the file's name, and what to do, into the errors of the libraries that read it."""
    check_readable(path)
    try:
        yield
    except MemoryError as error:  # Arrow's as well; not a fault of the file.
        reason = f" ({found})" if (found := _first_line(error)) else ""
        raise ValueError(
            f"{path}: there is not enough memory to read it{reason}; try fewer --workers, or leave "
            "it out. A .zst made with --long takes as much as its window: zstd -d --long=31, then "
            "zstd makes a smaller one"
        ) from error
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        message = (
            f"{path}: damaged, cut short, or not what its name says ({_first_line(error)}); "
            "copy or download it again, or leave it out"
        )
        if isinstance(error, OSError) and error.errno:  # Of the disk, which may be well again.
            raise ValueError(message) from error
        raise BadDocument(message, "damaged") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _read_table(piece: Piece, options: ReadOptions, read: ReadColumns) -> Iterator[Documents]:
    row = piece.first_row
    for texts, urls, others in read(
        Path(piece.path),
        options.text_column,
        options.columns,
        range(piece.start, MAX_ROW_GROUPS if piece.stop is None else piece.stop),
        MAX_BATCH_DOCUMENTS,
        MAX_BATCH_BYTES,
    ):
        rows = np.arange(row, row + len(texts))
        row += len(rows)
        valid_texts, repaired = make_valid(texts)
        valid_urls = make_valid(urls)[0].cast(pa.string())
        documents = Documents(valid_texts, valid_urls, rows, repaired, others, {}, piece.path)
        yield documents._replace(bad=_find_too_large(documents, options))


def _find_too_large(documents: Documents, options: ReadOptions) -> dict[int, BadDocument]:
    """The documents of a batch that are too large; raises the first if they are errors."""
    bad: dict[int, BadDocument] = {}
    advice = f"each row of {options.text_column!r} is a document"
    sizes = documents.num_bytes.tolist()
    if find_excess(max(sizes, default=0), documents.path, advice) is None:
        return bad
    for place, size in enumerate(sizes):
        if error := find_excess(size, documents.name(place), advice):
            if not options.skips_bad:
                raise error
            bad[place] = error
    return bad


def _read_lines(
    piece: Piece, options: ReadOptions, codec: str | None = None
) -> Iterator[Documents]:
    documents = _read_piece(piece, options, codec)
    if options.columns:
        documents = _expect_keys(documents, piece, options, codec)
    yield from _batch(documents, piece.path, "line", options.columns)


def _read_piece(piece: Piece, options: ReadOptions, codec: str | None) -> Iterator[Document]:
    return read_json_lines(
        Path(piece.path),
        codec,
        options.text_column,
        options.columns,
        piece.start,
        piece.stop,
        piece.first_row,
        options.skips_bad,
    )


def _expect_keys(
    documents: Iterable[Document], piece: Piece, options: ReadOptions, codec: str | None
) -> Iterator[Document]:
    """Pass documents on; ValueError at the end if none of the file has one of the keys.

    A slip would drop them all. A piece without the key is looked up in its whole file.
    """
    unseen = set(enumerate(options.columns))
    has_documents = False
    for document in documents:
        if unseen and document.bad is None:
            has_documents = True
            unseen -= {entry for entry in unseen if document.values[entry[0]] is not MISSING}
        yield document
    if not (unseen and has_documents):
        return
    if piece.start or piece.stop is not None:
        for document in _read_piece(Piece(piece.path, piece.name), options, codec):
            unseen -= {entry for entry in unseen if document.values[entry[0]] is not MISSING}
            if not unseen:
                return
    _, key = min(unseen)
    raise ValueError(
        f"{piece.path}: no key {key!r} on any line; the keys are "
        f"{list_keys(Path(piece.path), codec)}; name one of them in --where, or leave the file out"
    )


def _read_text(piece: Piece, options: ReadOptions) -> Iterator[Documents]:
    path = Path(piece.path)
    if options.columns:
        raise ValueError(f"{path}: is text without columns, so there is no {options.columns[0]!r}")
    if options.blank_line_documents:
        yield from _batch(read_blocks(path, options.skips_bad), piece.path, "block")
    else:
        yield from _batch(read_whole(path), piece.path)


def _estimate_plain(path: Path, text_column: str) -> int:
    return path.stat().st_size


def _estimate_compressed(path: Path, text_column: str) -> int:
    return path.stat().st_size * COMPRESSION_RATIO


def _batch(
    documents: Iterable[Document], path: str, row_name: str = "row", columns: Sequence[str] = ()
) -> Iterator[Documents]:
    """Collect documents into batches."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        text = document.text
        # Characters or bytes: either keeps a batch from growing without bound.
        size += text.as_buffer().size if isinstance(text, pa.Scalar) else len(text or "")
        if len(batch) == MAX_BATCH_DOCUMENTS or size >= MAX_BATCH_BYTES:
            transposed = _transpose(batch, path, row_name, columns)
            del document, text  # Large texts are not held twice while they are encoded.
            batch, size = [], 0
            yield transposed
            del transposed
    if batch:
        yield _transpose(batch, path, row_name, columns)


def _transpose(
    batch: list[Document], path: str, row_name: str, columns: Sequence[str]
) -> Documents:
    texts, urls, rows, repaired, others, bad = zip(*batch, strict=True)
    return Documents(
        pa.array(texts, pa.large_string()),
        pa.array(urls, pa.string()),
        np.array(rows, np.int64),
        np.array(repaired, np.bool_),
        {name: unite([row[i] for row in others]) for i, name in enumerate(columns)},
        {place: error for place, error in enumerate(bad) if error},
        path,
        row_name,
    )


_LINES = {
    "": Format(_read_lines, _estimate_plain, split_lines),
    ".gz": Format(partial(_read_lines, codec="gzip"), _estimate_compressed),
    ".zst": Format(partial(_read_lines, codec="zstd"), _estimate_compressed),
}
_ARROW = Format(partial(_read_table, read=read_arrow_columns), measure_arrow_column, split_batches)
FORMATS: dict[str, Format] = {
    ".parquet": Format(partial(_read_table, read=read_columns), measure_column, split_row_groups),
    ".arrow": _ARROW,
    ".feather": _ARROW,
    **{f"{name}{packed}": _LINES[packed] for name in JSON_LINES for packed in _LINES},
    ".txt": Format(_read_text, _estimate_plain),
}
# The help of --input and its error messages list them.
assert tuple(FORMATS) == SUFFIXES
