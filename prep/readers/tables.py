"""CSV and TSV as documents: one for each row below the line that names the columns.

Python's csv module reads them, strictly and row by row. It is exact about quotes and line ends in
fields, says where something is wrong, and goes on behind it. Arrow's reader is faster, but one bad
row or byte costs a whole block, and the rows lose their numbers. Bytes that are not UTF-8 pass
through the module as lone surrogates, and become U+FFFD here.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from prep.files.streams import open_stream, peek
from prep.policy import WHOLE_ROW
from prep.readers.batches import Document, mark_bad
from prep.readers.documents import BadDocument, Piece, ReadOptions
from prep.readers.encodings import HEAD_BYTES, decode, refuse_wide
from prep.readers.whole import has_chats, refuse_no_chats, write_row

DELIMITERS = {".csv": ",", ".tsv": "\t"}
# The module holds four bytes for each character of a field.
MAX_ROW_CHARACTERS = 64 << 20


def read_table(piece: Piece, options: ReadOptions, delimiter: str) -> Iterator[Document]:
    """Yield the text of each row, and what is in its other columns, which is text as well.

    Blank lines are no rows. A row is bad if its quotes do not fit, or if it has more or fewer
    fields than the first line. BadDocument for a file without the column or with two of them, for
    a row that is too long, and for a quoted field without an end, as that may hold any number of
    rows; ValueError if one of the other columns is not there.
    """
    path = Path(piece.path)
    with open_stream(path, options.codec) as file:
        refuse_wide(peek(file, HEAD_BYTES), path)
        with io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as lines:
            rows = _read_rows(lines, path, delimiter)
            names = _read_names(rows, path)
            is_whole = options.text_column == WHOLE_ROW
            if is_whole:
                refuse_no_chats(path, names)
                text_place = 0
            else:
                text_place = _find_text_column(names, path, options.text_column)
            other_places = [_find_column(names, path, name) for name in options.columns]
            url_place = names.index("url") if "url" in names else None
            for row, (place, fields) in enumerate(rows):
                if not isinstance(fields, BadDocument) and len(fields) != len(names):
                    fields = _describe_ragged(place, len(fields), len(names))
                if isinstance(fields, BadDocument):
                    if not options.skips_bad:
                        raise fields
                    yield mark_bad(fields, row, options.columns)
                    continue
                text, repaired = _restore(fields[text_place])
                if is_whole:
                    found = [_restore(entry) for entry in fields]
                    text = write_row(dict(zip(names, (t for t, _ in found), strict=True)))[0]
                    repaired = any(is_repaired for _, is_repaired in found)
                url = None if url_place is None else _restore(fields[url_place])[0]
                values = tuple(_restore(fields[place])[0] for place in other_places)
                document = Document(text, url, row, repaired, values)
                del fields, text  # Large ones are not held while the document is processed.
                yield document
                del document


def has_column(path: Path, delimiter: str, name: str) -> bool:
    """Whether a file that is not compressed has the column, or cannot be read, as reading tells."""
    try:
        with open(path, "rb") as file:
            refuse_wide(file.read(HEAD_BYTES), path)
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            names = _read_names(_read_rows(lines, path, delimiter), path)
            return has_chats(names) if name == WHOLE_ROW else name in names
    except (BadDocument, OSError):
        return True


# What an error calls a row, and its fields.
Row = tuple[str, list[str] | BadDocument]


def _read_rows(file: io.TextIOWrapper, path: Path, delimiter: str) -> Iterator[Row]:
    """Yield the rows, of which the first has the names of the columns."""
    num_characters = 0

    def read_lines() -> Iterator[str]:
        nonlocal num_characters
        while line := file.readline(MAX_ROW_CHARACTERS + 1):
            num_characters += len(line)
            if num_characters > MAX_ROW_CHARACTERS:
                raise BadDocument(
                    f"{place}: a row of more than {MAX_ROW_CHARACTERS >> 20} Mi characters, as a "
                    "quote that nothing closes makes it; close it, or split the row",
                    "too large",
                )
            yield line

    csv.field_size_limit(MAX_ROW_CHARACTERS)
    records = csv.reader(read_lines(), delimiter=delimiter, strict=True)
    place, row = f"{path}, line 1", 0
    fields: list[str] | BadDocument | None
    while True:
        num_characters = 0
        try:
            fields = next(records, None)
        except csv.Error as error:
            fields = BadDocument(
                f"{place}: not CSV ({error}); a quote inside a quoted field is written twice",
                "not CSV",
            )
            if "end of data" in str(error):
                raise fields from None
        if fields is None:
            return
        if fields:  # A blank line has none.
            yield place, fields
            row += 1
        place = f"{path}, row {max(row - 1, 0)}, line {records.line_num + 1}"


def _read_names(rows: Iterator[Row], path: Path) -> list[str]:
    """The names of the columns; BadDocument if the file has none."""
    _, fields = next(rows, ("", []))
    if isinstance(fields, BadDocument):
        raise fields
    if not fields:
        raise BadDocument(
            f"{path}: is empty; expected a first line with the names of the columns", "no columns"
        )
    return [_restore(name)[0] for name in fields]


def _find_text_column(names: list[str], path: Path, name: str) -> int:
    if name in names:
        return _find_column(names, path, name)
    raise BadDocument(
        f"{path}: no column {name!r} in its first line; the columns are {', '.join(names)}; name "
        "the right one with --text-column",
        "no such column",
    )


def _find_column(names: list[str], path: Path, name: str) -> int:
    if names.count(name) > 1:
        raise BadDocument(
            f"{path}: has {names.count(name)} columns {name!r}; expected one; rename the others, "
            "or leave the file out",
            "several columns of one name",
        )
    if name not in names:
        raise ValueError(f"{path}: no column {name!r}; the columns are {', '.join(names)}")
    return names.index(name)


def _describe_ragged(place: str, num_fields: int, num_names: int) -> BadDocument:
    return BadDocument(
        f"{place}: has {num_fields:,} fields; expected {num_names:,}, as in the first line; put "
        "fields with the separator, quotes or line ends in them into quotes",
        "another number of fields",
    )


def _restore(field: str) -> tuple[str, bool]:
    """A field with U+FFFD for what is not UTF-8; also says whether anything was not."""
    if field.isascii():
        return field, False
    try:
        field.encode("utf-8")
    except UnicodeEncodeError:
        return decode(field.encode("utf-8", "surrogateescape"))
    return field, False
