"""Source files as batches of documents: which formats there are, and how each is read.

A file is read as a stream, in batches of bounded size, and what cannot be read is one error that
names the file and says what to do. A new format is a reader, a row of
FORMATS, and its suffix in prep/request.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prep.files.door import check_readable
from prep.policy import WHOLE_ROW
from prep.readers.arrow import (
    measure_arrow_column,
    read_arrow_columns,
    read_arrow_rows,
    split_batches,
)
from prep.readers.batches import MAX_BATCH_BYTES, MAX_BATCH_DOCUMENTS, collect, find_excess
from prep.readers.columns import make_valid
from prep.readers.documents import BadDocument, Documents, Piece, ReadOptions
from prep.readers.items import is_list, split_json, split_lines
from prep.readers.objects import read_objects
from prep.readers.parquet import measure_column, read_columns, split_row_groups
from prep.readers.tables import DELIMITERS, read_table
from prep.readers.text import read_text
from prep.readers.warc import read_warc
from prep.readers.whole import estimate_bytes, read_parquet_rows
from prep.request import COLUMN_FILES, COMPRESSIONS, KINDS, TEXT_FILES

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
class Format:
    """How the files of one format are read."""

    read: Callable[[Piece, ReadOptions], Iterator[Documents]]
    # About how many bytes of text a file has, in the named column if it has columns.
    estimate: Callable[[Path, str], int]
    # Cuts a file that is not compressed into pieces of about this many bytes; None = never.
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
    form, codec = find_format(path)
    if text_column == WHOLE_ROW:
        refuse_texts(path)
    options = ReadOptions(text_column, tuple(columns), blank_line_documents, skips_bad, codec)
    with _naming_errors(path):
        yield from form.read(piece, options)


def split_file(path: Path, name: str, max_bytes: int) -> list[Piece]:
    """Cut a file into pieces of about `max_bytes` on disk, if its format allows it.

    Reading the pieces one after another is the same as reading the file.
    """
    form, codec = find_format(path)
    cuts: list[Cut] = []
    with _naming_errors(path):
        if form.split is not None and codec is None and path.stat().st_size > max_bytes:
            cuts = form.split(path, max_bytes)
    if len(cuts) < 2:
        return [Piece(str(path), name)]
    return [Piece(str(path), name, *cut) for cut in cuts]


def estimate_text_bytes(path: Path, text_column: str) -> int:
    """Estimate the bytes of text in a file, from its size or, for parquet, from its footer."""
    form, codec = find_format(path)
    if text_column == WHOLE_ROW:
        refuse_texts(path)
        return estimate_bytes(path) * (COMPRESSION_RATIO if codec else 1)
    with _naming_errors(path):
        return form.estimate(path, text_column) * (COMPRESSION_RATIO if codec else 1)


def find_format(path: Path) -> tuple[Format, str | None]:
    """The format that a file's name says, and its compression; ValueError for an unknown one."""
    name = path.name.lower()
    packing = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    codec = COMPRESSIONS.get(packing)
    for suffix, form in FORMATS.items():
        if name.removesuffix(packing).endswith(suffix) and not (codec and suffix in COLUMN_FILES):
            return form, codec
    raise ValueError(f"{path}: unknown kind of file; expected {KINDS}")


def refuse_texts(path: Path) -> None:
    """BadDocument for a file of plain text, which holds no chats."""
    if find_format(path)[0] in (FORMATS[".txt"], FORMATS[".warc"], FORMATS[".wet"]):
        raise BadDocument(
            f"{path}: holds texts, and --chat takes rows with messages: JSON, JSON lines, CSV or "
            "parquet; leave it out",
            "no chats",
        )


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
            "it out. A .zst made with --long, or a .xz with a large dictionary, takes as much as "
            "that: unpack it, and pack it with a smaller one"
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


def _read_columns(piece: Piece, options: ReadOptions, read: ReadColumns) -> Iterator[Documents]:
    row, path = piece.first_row, Path(piece.path)
    wanted = range(piece.start, MAX_ROW_GROUPS if piece.stop is None else piece.stop)
    if options.text_column == WHOLE_ROW:
        whole = read_parquet_rows if read is read_columns else read_arrow_rows
        batches = whole(path, options.columns, wanted)
    else:
        limits = (MAX_BATCH_DOCUMENTS, MAX_BATCH_BYTES)
        batches = read(path, options.text_column, options.columns, wanted, *limits)
    for texts, urls, others in batches:
        rows = np.arange(row, row + len(texts))
        row += len(rows)
        valid_texts, repaired = make_valid(texts)
        valid_urls = make_valid(urls)[0].cast(pa.string())
        documents = Documents(valid_texts, valid_urls, rows, repaired, others, {}, piece.path)
        if bad := _find_too_large(documents, options):
            is_bad = pa.array(np.isin(np.arange(len(rows)), [*bad]))
            no_text = pa.scalar(None, valid_texts.type)
            documents = documents._replace(texts=pc.if_else(is_bad, no_text, valid_texts), bad=bad)
        yield documents


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


def _read_json_lines(piece: Piece, options: ReadOptions) -> Iterator[Documents]:
    documents = read_objects(piece, options, "line")
    return collect(documents, piece.path, "line", options.columns)


def _read_json(piece: Piece, options: ReadOptions) -> Iterator[Documents]:
    """A .json is one list of objects, or has one on each line."""
    if piece.start or not is_list(Path(piece.path), options.codec):
        return _read_json_lines(piece, options)
    documents = read_objects(piece, options, "item")
    return collect(documents, piece.path, "item", options.columns)


def _read_table(piece: Piece, options: ReadOptions, suffix: str) -> Iterator[Documents]:
    documents = read_table(piece, options, DELIMITERS[suffix])
    return collect(documents, piece.path, "row", options.columns)


def _read_text(piece: Piece, options: ReadOptions) -> Iterator[Documents]:
    return collect(read_text(piece, options), piece.path, "block")


def _read_warc(piece: Piece, options: ReadOptions) -> Iterator[Documents]:
    return collect(read_warc(piece, options), piece.path, "record", options.columns)


def _estimate_by_size(path: Path, text_column: str) -> int:
    return path.stat().st_size


_ARROW = Format(
    partial(_read_columns, read=read_arrow_columns), measure_arrow_column, split_batches
)
# By the suffix of the file, which a compression's may follow if it is one of text.
FORMATS: dict[str, Format] = {
    ".parquet": Format(partial(_read_columns, read=read_columns), measure_column, split_row_groups),
    ".arrow": _ARROW,
    ".feather": _ARROW,
    ".jsonl": Format(_read_json_lines, _estimate_by_size, split_lines),
    ".ndjson": Format(_read_json_lines, _estimate_by_size, split_lines),
    ".json": Format(_read_json, _estimate_by_size, split_json),
    ".csv": Format(partial(_read_table, suffix=".csv"), _estimate_by_size),
    ".tsv": Format(partial(_read_table, suffix=".tsv"), _estimate_by_size),
    ".txt": Format(_read_text, _estimate_by_size),
    ".warc": Format(_read_warc, _estimate_by_size),
    ".wet": Format(_read_warc, _estimate_by_size),
}
# The help of --input and its error messages list them.
assert tuple(FORMATS) == (*COLUMN_FILES, *TEXT_FILES)
