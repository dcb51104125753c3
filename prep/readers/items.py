"""Files of JSON cut into their objects, as bytes: one on each line, or the items of one list.

A list is cut at the commas between its items, which are found without decoding what is in them: by
strings and brackets, in chunks, so that memory holds one item, and a bad one costs no other.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from prep.files.streams import BUFFER_BYTES, open_stream, peek
from prep.readers.batches import MAX_DOCUMENT_BYTES, find_excess
from prep.readers.documents import BadDocument, Piece, ReadOptions, name_row
from prep.readers.encodings import HEAD_BYTES, UTF8_MARK, refuse_wide

_CHUNK_BYTES = BUFFER_BYTES
# A line that holds nothing, after strip().
_BLANK = (b"", UTF8_MARK)
# What is in a string, to its end or that of what was read so far; and what has no brackets but in
# whole strings, nor commas if it is between items.
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_STRING = rb'"' + _IN_STRING.pattern + rb'"'
_IN_ITEM = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+", re.DOTALL)
_BETWEEN_ITEMS = re.compile(rb'(?:[^"\[\]{},]++|' + _STRING + rb")*+", re.DOTALL)
_SPACE = b" \t\r\n"


class Item(NamedTuple):
    """What may be an object."""

    row: int  # its line, or its place in the list, from 0
    source: bytes
    bad: BadDocument | None = None  # why there is no source


def cut_lines(piece: Piece, options: ReadOptions) -> Iterator[Item]:
    """Yield the lines in bytes [start, stop), but for blank ones, which count as rows.

    A byte order mark may stand before any line, as joined files have it. ValueError if the file
    was changed since it was cut into pieces.
    """
    path, row, position = Path(piece.path), piece.first_row, piece.start
    with open_stream(path, options.codec) as file:
        if piece.start:
            file.seek(piece.start)
        else:
            _check_head(peek(file, HEAD_BYTES), path)
        while piece.stop is None or position < piece.stop:
            line = file.readline(MAX_DOCUMENT_BYTES + 1)
            if not line:
                break
            position += len(line)
            if len(line) > MAX_DOCUMENT_BYTES:
                place, is_cut = name_row(str(path), "line", row), not line.endswith(b"\n")
                bad = find_excess(len(line), place, "expected a document on each line")
                del line
                yield Item(row, b"", bad)
                position += _pass_line(file) if is_cut else 0
            elif line.strip() not in _BLANK:
                held = [line]
                del line  # A large one is not held here while its document is processed.
                yield Item(row, held.pop())
            row += 1
    if piece.stop is not None and position != piece.stop:
        raise ValueError(
            f"{path}: was changed since it was planned, when a line ended at byte {piece.stop:,}; "
            "put the old file back, or start over"
        )


def cut_list(piece: Piece, options: ReadOptions) -> Iterator[Item]:
    """Yield the items of a file that is one list; OSError if it is not one to its last byte."""
    path, row = Path(piece.path), 0
    with open_stream(path, options.codec) as file:
        refuse_wide(peek(file, HEAD_BYTES), path)
        scanner = _Scanner(file)
        scanner.enter()
        while not scanner.is_done:
            held = [scanner.take(row)]
            bad = find_excess(
                scanner.num_bytes, name_row(str(path), "item", row), "each item is a document"
            )
            if not (scanner.is_done and row == 0 and not held[0].strip() and not bad):  # []
                yield Item(row, b"" if bad else held.pop(), bad)
            row += 1
        scanner.leave()


class _Scanner:
    """Takes one item of a list after another from a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.buffer = bytearray()
        self.num_bytes = 0  # of the last item
        self.is_done = False

    def enter(self) -> None:
        """Read to behind the bracket that begins the list."""
        while not (head := bytes(self.buffer).removeprefix(UTF8_MARK).lstrip(_SPACE)):
            if not self._read():
                raise OSError("holds no list")
        if not head.startswith(b"["):
            raise OSError("does not begin with a list")
        self.buffer = bytearray(head[1:])

    def take(self, row: int) -> bytes:
        """Read to behind the comma or bracket that ends an item; b"" for one that is too large."""
        depth = place = dropped = 0
        in_string = False
        while True:
            pattern = _IN_STRING if in_string else _IN_ITEM if depth else _BETWEEN_ITEMS
            place = _find_end(pattern, self.buffer, place)
            byte = bytes(self.buffer[place : place + 1])
            if byte in (b"", b"\\"):  # The end of what was read.
                if dropped + place > MAX_DOCUMENT_BYTES:
                    del self.buffer[:place]
                    dropped, place = dropped + place, 0
                if not self._read():
                    raise OSError(f"the list does not end; it was read up to item {row}")
                continue
            place += 1
            if byte == b'"':
                in_string = not in_string
            elif depth == 0 and byte in b",]":
                break
            else:
                depth = max(0, depth + (1 if byte in b"[{" else -1))
        self.is_done = byte == b"]"
        self.num_bytes = dropped + place - 1
        with memoryview(self.buffer) as view:
            item = b"" if dropped else bytes(view[: place - 1])
        del self.buffer[:place]
        return item

    def leave(self) -> None:
        """OSError if anything but space follows the list."""
        while not self.buffer.strip(_SPACE):
            self.buffer.clear()
            if not self._read():
                return
        raise OSError("more follows the end of its list")

    def _read(self) -> bool:
        chunk = self.file.read(_CHUNK_BYTES)
        self.buffer += chunk
        return bool(chunk)


def _find_end(pattern: re.Pattern[bytes], buffer: bytearray, place: int) -> int:
    found = pattern.match(buffer, place)
    assert found  # It may be empty.
    return found.end()


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


def split_json(path: Path, max_bytes: int) -> list[tuple[int, int, int]]:
    """The same for a .json, of which a list stays whole."""
    return [] if is_list(path, None) else split_lines(path, max_bytes)


def is_list(path: Path, codec: str | None) -> bool:
    """Whether a file begins as one list of objects does, rather than as lines."""
    with open_stream(path, codec) as file:
        return _begins_list(peek(file, HEAD_BYTES))


def _begins_list(head: bytes) -> bool:
    first, _, others = head.removeprefix(UTF8_MARK).strip().partition(b"\n")
    return first.startswith(b"[") and not (first.rstrip().endswith(b"]") and others)


def _check_head(head: bytes, path: Path) -> None:
    """BadDocument for a file that does not begin as lines of JSON in UTF-8 do."""
    refuse_wide(head, path)
    first, _, others = head.removeprefix(UTF8_MARK).strip().partition(b"\n")
    if _begins_list(head):
        found, command = "is one JSON list", "jq -c '.[]'"
    elif first.rstrip() == b"{" and others:
        found, command = "is JSON over several lines", "jq -c ."
    else:
        return
    raise BadDocument(
        f"{path}: {found}; expected one JSON object on each line, as {command} writes them",
        "not JSON lines",
    )


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
