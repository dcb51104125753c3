"""Text files as documents: .jsonl, plain or compressed, one per line; .txt, one per file or block.

What is not valid Unicode becomes U+FFFD and is marked, never skipped.
"""

import io
import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.json

from prep.readers.documents import MISSING, BadDocument, find_value
from prep.readers.encodings import HEAD_BYTES, UTF8_MARK, decode, refuse_wide, repair
from prep.readers.streams import BUFFER_BYTES, open_stream

# A longer document is most likely a file that is not what it should be; and handling one takes no
# more than a few times its size in memory.
MAX_DOCUMENT_BYTES = 256 << 20

_CHUNK_BYTES = BUFFER_BYTES
_LONG_LINE_BYTES = 16 << 20
_MAX_KEYS_SHOWN = 20
# A line that holds nothing, after strip().
_BLANK = (b"", UTF8_MARK)
_TYPE_NAMES = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


class Document(NamedTuple):
    """One document as it is in its file."""

    text: str | pa.LargeStringScalar | None  # Arrow's for a very long one
    url: str | None
    row: int
    repaired: bool
    values: tuple[Any, ...] = ()  # of the other keys that were asked for; MISSING where not there
    bad: BadDocument | None = None  # why there is no text, if bad documents are not errors


def read_whole(path: Path) -> Iterator[Document]:
    """Yield a .txt as one document, to the last byte."""
    check_size(path.stat().st_size, str(path), "for many documents use --blank-line-documents")
    content = path.read_bytes()
    refuse_wide(content[:HEAD_BYTES], path)
    text, repaired = decode(content.removeprefix(UTF8_MARK))
    yield Document(text, None, 0, repaired)


def read_blocks(path: Path, skips_bad: bool = False) -> Iterator[Document]:
    """Yield the blocks between the blank lines of a .txt, each without its last line end."""
    row = num_bytes = 0
    block: list[bytes] = []
    bad: BadDocument | None = None
    with open(path, "rb") as file:
        refuse_wide(file.peek(HEAD_BYTES), path)
        for number, line in enumerate(iter(partial(file.readline, MAX_DOCUMENT_BYTES + 1), b"")):
            content = line if number else line.removeprefix(UTF8_MARK)
            if content.strip():
                block.append(content)
                num_bytes += len(content)
                place = f"{path}, block {row}"
                if bad := bad or find_excess(num_bytes, place, "blank lines separate documents"):
                    if not skips_bad:
                        raise bad
                    block = [b""]  # The rest of it is not kept.
            elif block:
                yield _join_block(block, row, bad)
                row, block, num_bytes, bad = row + 1, [], 0, None
    if block:
        yield _join_block(block, row, bad)


def read_json_lines(
    path: Path,
    codec: str | None,
    key: str,
    keys: Sequence[str] = (),
    start: int = 0,
    stop: int | None = None,
    first_row: int = 0,
    skips_bad: bool = False,
) -> Iterator[Document]:
    """Yield the text under `key`, and what is under `keys`, for the lines in bytes [start, stop).

    `codec` is the file's compression, as `open_stream` has it. A key with dots that is not there
    is that of an object in an object. Blank lines hold no document, but count as rows. A byte
    order mark may stand before any line, as joined files have it. Raises BadDocument for a line
    that is not an object with text (or null) under that key (or, if bad ones are skipped, yields it
    as such), and ValueError if the file was changed since it was cut.
    """
    row, position = first_row, start
    with open_stream(path, codec) as file:
        if start:
            file.seek(start)
        else:
            _check_head(file, path)
        while stop is None or position < stop:
            line = file.readline(MAX_DOCUMENT_BYTES + 1)
            if not line:
                break
            place = f"{path}, line {row + 1}"
            if bad := find_excess(len(line), place, "expected a document on each line"):
                if not skips_bad:
                    raise bad
                position += len(line) + (0 if line.endswith(b"\n") else _pass_line(file))
                row += 1
                yield _mark_bad(bad, row - 1, keys)
                continue
            position += len(line)
            row += 1
            if line.strip() not in _BLANK:
                try:
                    document = _parse_line(line, row - 1, key, keys, place)
                except BadDocument as error:
                    if not skips_bad:
                        raise
                    document = _mark_bad(error, row - 1, keys)
                del line  # A large one is not held while its document is processed.
                yield document
                del document
    if stop is not None and position != stop:
        raise ValueError(
            f"{path}: was changed since it was planned, when a line ended at byte {stop:,}; "
            "put the old file back, or start over"
        )


def begins_with_document(path: Path, key: str) -> bool:
    """Whether a file's first line is an object with something under that key."""
    with open(path, "rb") as file:
        line = file.readline(_LONG_LINE_BYTES)
    try:
        found = json.loads(decode(line.removeprefix(UTF8_MARK))[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and find_value(found, key) is not MISSING


def split_lines(path: Path, max_bytes: int) -> list[tuple[int, int, int]]:
    """Cut a file at line starts into about equal parts: (first byte, end, lines before it)."""
    size = path.stat().st_size
    num_parts = math.ceil(size / max_bytes)
    cuts: list[tuple[int, int, int]] = []
    start = row = 0
    with open(path, "rb") as file:
        for number in range(1, num_parts + 1):
            num_lines = _count_lines(file, size * number // num_parts - start)
            num_lines += _skip_line(file)
            if file.tell() > start:
                cuts.append((start, file.tell(), row))
            start, row = file.tell(), row + num_lines
    return cuts


def list_keys(path: Path, codec: str | None) -> str:
    """The keys of a file's first object, for a message."""
    with open_stream(path, codec) as file:
        for line in iter(partial(file.readline, _LONG_LINE_BYTES), b""):
            try:
                return _name_keys(_parse_object(decode(line.removeprefix(UTF8_MARK))[0], ""))
            except BadDocument:
                continue
    return "none"


def check_size(num_bytes: int, place: str, advice: str) -> None:
    """Raise BadDocument for a document that is too large."""
    if bad := find_excess(num_bytes, place, advice):
        raise bad


def find_excess(num_bytes: int, place: str, advice: str) -> BadDocument | None:
    """What to say of a document if it is too large."""
    if num_bytes <= MAX_DOCUMENT_BYTES:
        return None
    return BadDocument(
        f"{place}: a document of more than {MAX_DOCUMENT_BYTES >> 20} MiB; {advice}; "
        "split it, or leave it out",
        "too large",
    )


def _check_head(file: BinaryIO, path: Path) -> None:
    """ValueError for a file that does not begin as lines of JSON in UTF-8 do."""
    head = cast(io.BufferedReader, file).peek(HEAD_BYTES)
    refuse_wide(head, path)
    first, _, others = head.removeprefix(UTF8_MARK).strip().partition(b"\n")
    if first.startswith(b"[") and not (first.rstrip().endswith(b"]") and others):
        found, command = "is one JSON list", "jq -c '.[]'"
    elif first.rstrip() == b"{" and others:
        found, command = "is JSON over several lines", "jq -c ."
    else:
        return
    raise BadDocument(
        f"{path}: {found}; expected one JSON object on each line, as {command} writes them",
        "not JSON lines",
    )


def _join_block(lines: list[bytes], row: int, bad: BadDocument | None) -> Document:
    if bad:
        return _mark_bad(bad, row)
    text, repaired = decode(b"".join(lines).removesuffix(b"\n").removesuffix(b"\r"))
    return Document(text, None, row, repaired)


def _mark_bad(error: BadDocument, row: int, keys: Sequence[str] = ()) -> Document:
    return Document(None, None, row, False, (MISSING,) * len(keys), error)


def _parse_line(line: bytes, row: int, key: str, keys: Sequence[str], place: str) -> Document:
    """Take the text and the url out of a line; `place` is what an error calls the line."""
    if len(line) > _LONG_LINE_BYTES and not keys and (long := _parse_long_line(line, row, key)):
        return long
    source, line_repaired = decode(line)
    found = _parse_object(source, place)
    text, url = find_value(found, key), found.get("url")
    if text is MISSING:
        raise BadDocument(
            f"{place}: no key {key!r}; the keys are {_name_keys(found)}; "
            "name the right one with --text-column",
            "no such key",
        )
    url = repair(url)[0] if isinstance(url, str) else None
    values = tuple(find_value(found, name) for name in keys)
    if text is None:
        return Document(None, url, row, False, values)
    if not isinstance(text, str):
        raise BadDocument(
            f"{place}: {key!r} holds {_TYPE_NAMES[type(text)]}; expected text; "
            "name the right key with --text-column",
            "not text",
        )
    text, text_repaired = repair(text)
    text_repaired = text_repaired or (line_repaired and "\ufffd" in text)
    return Document(text, url, row, text_repaired, values)


def _parse_long_line(line: bytes, row: int, key: str) -> Document | None:
    """Parse a line of many megabytes without Python strings, which take up to 4 bytes a character.

    None if anything is unusual: the usual way will then say what it is.
    """
    schema = pa.schema(dict.fromkeys((key, "url"), pa.string()))
    try:
        table = pa.json.read_json(
            pa.BufferReader(line),
            pa.json.ReadOptions(use_threads=False, block_size=len(line) + 1),
            pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        table.validate(full=True)
        [text], [url] = table[key], table["url"]
    except (pa.ArrowException, ValueError):
        return None
    return (
        Document(text.cast(pa.large_string()), url.as_py(), row, False) if text.is_valid else None
    )


def _parse_object(source: str, place: str) -> dict[str, Any]:
    try:
        found = json.loads(source)
    except json.JSONDecodeError as error:
        if source.startswith("\ufeff"):
            return _parse_object(source.lstrip("\ufeff"), place)
        reason = f"not JSON ({error.msg} at character {error.pos + 1})"
    except (ValueError, RecursionError) as error:
        reason = f"JSON that cannot be read ({error})"
    else:
        if isinstance(found, dict):
            return found
        reason = f"holds {_TYPE_NAMES[type(found)]}"
    raise BadDocument(f"{place}: {reason}; each line must be one JSON object", "not a JSON object")


def _name_keys(found: dict[str, Any]) -> str:
    return repair(", ".join(list(found)[:_MAX_KEYS_SHOWN]))[0] or "none"


def _skip_line(file: BinaryIO) -> bool:
    """Read past the next line end, however far it is; returns whether there is one."""
    while piece := file.readline(_CHUNK_BYTES):
        if piece.endswith(b"\n"):
            return True
    return False


def _pass_line(file: BinaryIO) -> int:
    """Read past the next line end; returns how many bytes that was."""
    num_bytes = 0
    while piece := file.readline(_CHUNK_BYTES):
        num_bytes += len(piece)
        if piece.endswith(b"\n"):
            break
    return num_bytes


def _count_lines(file: BinaryIO, num_bytes: int) -> int:
    """Read the next `num_bytes` of a file and count the line ends in them."""
    num_lines = 0
    while num_bytes > 0 and (chunk := file.read(min(num_bytes, _CHUNK_BYTES))):
        num_lines += chunk.count(b"\n")
        num_bytes -= len(chunk)
    return num_lines
