"""Plain text as documents: a .txt is one, or one for each block between its blank lines.

What is not valid Unicode becomes U+FFFD and is marked, never skipped.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from prep.files.streams import open_stream, peek
from prep.readers.batches import (
    MAX_DOCUMENT_BYTES,
    Document,
    check_size,
    find_excess,
    mark_bad,
)
from prep.readers.documents import BadDocument, Piece, ReadOptions
from prep.readers.encodings import HEAD_BYTES, UTF8_MARK, decode, refuse_wide


def read_text(piece: Piece, options: ReadOptions) -> Iterator[Document]:
    """Yield a .txt as one document, or as the blocks that the options ask for."""
    path = Path(piece.path)
    if options.columns:
        raise ValueError(f"{path}: is text without columns, so there is no {options.columns[0]!r}")
    return read_blocks(path, options) if options.blank_line_documents else read_whole(path, options)


def read_whole(path: Path, options: ReadOptions) -> Iterator[Document]:
    """Yield a .txt as one document, to the last byte."""
    with open_stream(path, options.codec) as file:
        content = file.read(MAX_DOCUMENT_BYTES + 1)
    check_size(len(content), str(path), "for many documents use --blank-line-documents")
    refuse_wide(content[:HEAD_BYTES], path)
    text, repaired = decode(content.removeprefix(UTF8_MARK))
    yield Document(text, None, 0, repaired)


def read_blocks(path: Path, options: ReadOptions) -> Iterator[Document]:
    """Yield the blocks between the blank lines of a .txt, each without its last line end."""
    row = num_bytes = 0
    block: list[bytes] = []
    bad: BadDocument | None = None
    with open_stream(path, options.codec) as file:
        refuse_wide(peek(file, HEAD_BYTES), path)
        for number, line in enumerate(iter(partial(file.readline, MAX_DOCUMENT_BYTES + 1), b"")):
            content = line if number else line.removeprefix(UTF8_MARK)
            if content.strip():
                block.append(content)
                num_bytes += len(content)
                place = f"{path}, block {row}"
                if bad := bad or find_excess(num_bytes, place, "blank lines separate documents"):
                    if not options.skips_bad:
                        raise bad
                    block = [b""]  # The rest of it is not kept.
            elif block:
                yield _join_block(block, row, bad)
                row, block, num_bytes, bad = row + 1, [], 0, None
    if block:
        yield _join_block(block, row, bad)


def _join_block(lines: list[bytes], row: int, bad: BadDocument | None) -> Document:
    if bad:
        return mark_bad(bad, row)
    text, repaired = decode(b"".join(lines).removesuffix(b"\n").removesuffix(b"\r"))
    return Document(text, None, row, repaired)
