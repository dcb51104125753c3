"""WARC files as documents: their text records, as in the WET files of a crawl.

A record is a document if it is a `conversion` or a `resource` of type text/plain; all others
(responses with HTML, requests, metadata) are passed over. A file that has only those is refused, as
text must be taken out of HTML first.

The format is a few header lines and a length (ISO 28500), and our own streams read what is around
it, so there is no library here: fastwarc 2.0 and warcio 1.8 take a file that is cut short for a
whole one, and end in silence.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from prep.files.streams import open_stream
from prep.readers.batches import Document, expect_keys, find_excess, mark_bad
from prep.readers.documents import MISSING, BadDocument, Piece, ReadOptions, name_row
from prep.readers.encodings import decode

_TEXT_RECORDS = ("conversion", "resource")
_TEXT_TYPE = "text/plain"
_MAX_HEADER_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
_LINE_ENDS = (b"\r\n", b"\n")
_MAX_DIGITS = 18
# The fields of a record's header, by their names in small letters.
Header = dict[str, str]


def read_warc(piece: Piece, options: ReadOptions) -> Iterator[Document]:
    """Yield the text records; the row is a record's number among all of the file, from 0.

    `options.columns` are fields of their headers. OSError for a file that is not whole records to
    its last byte, BadDocument for one without text records and for a text that has not the digest
    in its header (if bad ones are skipped, it is yielded as such).
    """

    def read(piece: Piece) -> Iterator[Document]:
        return _read_records(Path(piece.path), options)

    def describe() -> str:
        return "in any text record; the keys are fields of its header, such as WARC-Target-URI"

    return expect_keys(read, piece, options.columns, describe)


def _read_records(path: Path, options: ReadOptions) -> Iterator[Document]:
    others: Counter[str] = Counter()
    row = num_texts = 0
    with open_stream(path, options.codec) as file:
        while header := _read_header(file, row):
            num_bytes = _find_length(header, row)
            if is_text(header):
                num_texts += 1
                document = _read_document(file, path, row, header, num_bytes, options)
                _pass_end(file, row)
                yield document
                del document
            else:
                others[header["warc-type"].lower()] += 1
                _pass_block(file, num_bytes, row)
                _pass_end(file, row)
            row += 1
    del others["warcinfo"]
    if others and not num_texts:
        found = ", ".join(f"{kind or 'of no type'} {count:,}" for kind, count in others.items())
        raise BadDocument(
            f"{path}: has no text records ({found}); expected those of WET files: conversion, "
            "text/plain; take the text out of the HTML first, or the crawl's .warc.wet.gz",
            "no text records",
        )


def is_text(header: Header) -> bool:
    """Whether a record is a document."""
    return header["warc-type"].lower() in _TEXT_RECORDS and (
        header.get("content-type", "").lower().startswith(_TEXT_TYPE)
    )


def _read_document(
    file: BinaryIO, path: Path, row: int, header: Header, num_bytes: int, options: ReadOptions
) -> Document:
    place, block = name_row(str(path), "record", row), b""
    bad = find_excess(num_bytes, place, "each text record is a document")
    if bad:
        _pass_block(file, num_bytes, row)
    else:
        block = file.read(num_bytes)
        if len(block) < num_bytes:
            raise _end_early(row)
        bad = _check_digest(block, header.get("warc-block-digest", ""), place)
    if bad and not options.skips_bad:
        raise bad
    if bad:
        return mark_bad(bad, row, options.columns)
    text, repaired = decode(block)
    url = header.get("warc-target-uri")
    values = tuple(header.get(name.lower(), MISSING) for name in options.columns)
    # Some writers put it in brackets, as the first edition of the standard did.
    return Document(text, url and url.strip("<>"), row, repaired, values)


def _read_header(file: BinaryIO, row: int) -> Header:
    """A record's header; empty at the end of the file."""
    line = file.readline(_MAX_HEADER_BYTES)
    if not line:
        return {}
    if not line.startswith(b"WARC/"):
        raise OSError(f"record {row} does not begin with WARC/1.0 or the like")
    header: Header = {}
    name, left = "", _MAX_HEADER_BYTES
    while (line := file.readline(left)) not in _LINE_ENDS:
        left -= len(line)
        if not line.endswith(b"\n"):
            raise _end_early(row) if left else OSError(f"the header of record {row} has no end")
        content = decode(line)[0].strip()
        if line[:1] in b" \t" and name:  # It goes on with the line before.
            header[name] += f" {content}"
            continue
        name, colon, value = content.partition(":")
        if not colon:
            raise OSError(f"the header of record {row} has a line without a colon")
        name = name.strip().lower()
        header[name] = value.strip()
    header.setdefault("warc-type", "")
    return header


def _find_length(header: Header, row: int) -> int:
    length = header.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) <= _MAX_DIGITS):
        raise OSError(f"record {row} has the Content-Length {length!r:.40}")
    return int(length)


def _check_digest(block: bytes, digest: str, place: str) -> BadDocument | None:
    """What to say of a block that has not the digest in its header, if that is of a known kind.

    It is written as sha1:BASE32, and by some as sha256:hexadecimal.
    """
    name, _, value = digest.partition(":")
    if name.lower() not in ("sha1", "sha256"):
        return None
    found = hashlib.new(name.lower(), block, usedforsecurity=False)
    if value.lower() == found.hexdigest():
        return None
    try:
        if base64.b32decode(value.upper() + "=" * (-len(value) % 8)) == found.digest():
            return None
    except ValueError:  # Neither of the two forms.
        pass
    return BadDocument(
        f"{place}: is not the text that its WARC-Block-Digest was taken of; copy or download the "
        "file again, or leave the record out with --on-bad-document skip",
        "damaged",
    )


def _pass_block(file: BinaryIO, num_bytes: int, row: int) -> None:
    while num_bytes:
        chunk = file.read(min(num_bytes, _CHUNK_BYTES))
        if not chunk:
            raise _end_early(row)
        num_bytes -= len(chunk)


def _pass_end(file: BinaryIO, row: int) -> None:
    """Read the two line ends behind a block, which are alike."""
    first, second = file.readline(len(b"\r\n")), file.readline(len(b"\r\n"))
    if first == second and first in _LINE_ENDS:
        return
    if not (first + second).strip(b"\r\n") and not file.read(1):
        raise _end_early(row)
    raise OSError(f"record {row} is not as long as its Content-Length says")


def _end_early(row: int) -> OSError:
    return OSError(f"the file ends within record {row}")
