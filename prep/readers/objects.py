"""JSON objects as documents: what is under a key is the text, and under `url` the URL.

What is not valid Unicode becomes U+FFFD and is marked, never skipped.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from prep.policy import WHOLE_ROW
from prep.readers.batches import Document, expect_keys, mark_bad
from prep.readers.documents import (
    MISSING,
    BadDocument,
    Piece,
    ReadOptions,
    find_value,
    name_row,
)
from prep.readers.encodings import HEAD_BYTES, decode, refuse_wide, repair
from prep.readers.items import Item, cut_lines, cut_list, is_list
from prep.readers.whole import has_chats, write_row

_LONG_BYTES = 16 << 20
# A .json that describes a data set is smaller.
_MAX_DESCRIPTION_BYTES = 16 << 20
_MAX_KEYS_SHOWN = 20
# What an object is called where it stands, and what cuts a file into such.
_CUTS = {"line": cut_lines, "item": cut_list}
_TYPE_NAMES = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def read_objects(piece: Piece, options: ReadOptions, row_name: str) -> Iterator[Document]:
    """Yield the text, and what else is asked for, of each object in a file.

    `row_name` is "line" or "item". A key with dots that is not there is that of an object in an
    object. Raises BadDocument for what is not an object with text (or null) under the key (or, if
    bad ones are skipped, yields it as such), ValueError if no object has a key that is asked for,
    and OSError or ValueError if the file cannot be cut.
    """

    def read(piece: Piece) -> Iterator[Document]:
        for item in _CUTS[row_name](piece, options):
            document = _parse_item(item, options, row_name, piece.path)
            del item  # A large one is not held while its document is processed.
            yield document
            del document

    def describe() -> str:
        where = "on any line" if row_name == "line" else "in any item"
        return f"{where}; the keys are {list_keys(piece, options, row_name)}"

    return expect_keys(read, piece, options.columns, describe) if options.columns else read(piece)


def begins_with_document(path: Path, key: str) -> bool:
    """Whether a .json begins with an object that has the key, or is not JSON, as reading tells.

    An object over several lines, as descriptions of data sets are, is judged as a whole.
    """
    options = ReadOptions(key, (), False, skips_bad=True)
    cut = cut_list if is_list(path, None) else cut_lines
    try:
        item = next(cut(Piece(str(path), path.name), options))
        found = _parse_object(decode(item.source)[0])
    except StopIteration:
        return False
    except (ValueError, OSError):
        return not _is_description(path, key)
    return _has(found, key)


def _has(found: dict[str, Any], key: str) -> bool:
    """Whether an object has a key or, if it is wanted as a whole, those of a chat."""
    return has_chats(found) if key == WHOLE_ROW else find_value(found, key) is not MISSING


def _is_description(path: Path, key: str) -> bool:
    """Whether a file is JSON as a whole, of moderate size, and not an object that has the key."""
    try:
        if path.stat().st_size > _MAX_DESCRIPTION_BYTES:
            return False
        content = path.read_bytes()
        refuse_wide(content[:HEAD_BYTES], path)
        found = json.loads(content)
    except (ValueError, OSError, RecursionError):
        return False
    return not isinstance(found, dict) or not _has(found, key)


def list_keys(piece: Piece, options: ReadOptions, row_name: str) -> str:
    """The keys of a file's first object, for a message."""
    for item in _CUTS[row_name](Piece(piece.path, piece.name), options):
        try:
            return _name_keys(_parse_object(decode(item.source)[0]))
        except BadDocument:
            continue
    return "none"


def _parse_item(item: Item, options: ReadOptions, row_name: str, path: str) -> Document:
    try:
        if item.bad:
            raise item.bad
        return _parse_document(item, options, row_name, path)
    except BadDocument as error:
        if not options.skips_bad:
            raise
        return mark_bad(error, item.row, options.columns)


def _parse_document(item: Item, options: ReadOptions, row_name: str, path: str) -> Document:
    """Take the text and the url out of an object."""
    row, data, key, keys = item.row, item.source, options.text_column, options.columns
    is_whole = key == WHOLE_ROW
    may_be_long = len(data) > _LONG_BYTES and not keys and not is_whole
    if may_be_long and (long := _parse_long(data, row, key)):
        return long
    place = name_row(path, row_name, row)
    source, source_repaired = decode(data)
    found = _parse_object(source, place, row_name)
    text, url = None if is_whole else find_value(found, key), found.get("url")
    if text is MISSING:
        raise BadDocument(
            f"{place}: no key {key!r}; the keys are {_name_keys(found)}; "
            "name the right one with --text-column",
            "no such key",
        )
    url = repair(url)[0] if isinstance(url, str) else None
    values = tuple(find_value(found, name) for name in keys)
    if is_whole:
        text, is_repaired = write_row(found)
        return Document(text, url, row, is_repaired or source_repaired, values)
    if text is None:
        return Document(None, url, row, False, values)
    if not isinstance(text, str):
        raise BadDocument(
            f"{place}: {key!r} holds {_TYPE_NAMES[type(text)]}; expected text; "
            "name the right key with --text-column",
            "not text",
        )
    text, text_repaired = repair(text)
    text_repaired = text_repaired or (source_repaired and "\ufffd" in text)
    return Document(text, url, row, text_repaired, values)


def _parse_long(data: bytes, row: int, key: str) -> Document | None:
    """Parse a large object without Python strings, which take up to 4 bytes a character.

    None if anything is unusual: the usual way will then say what it is.
    """
    schema = pa.schema(dict.fromkeys((key, "url"), pa.string()))
    try:
        table = pa.json.read_json(
            pa.BufferReader(data),
            pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        table.validate(full=True)
        [text], [url] = table[key], table["url"]
    except (pa.ArrowException, ValueError):
        return None
    return (
        Document(text.cast(pa.large_string()), url.as_py(), row, False) if text.is_valid else None
    )


def _parse_object(source: str, place: str = "", row_name: str = "line") -> dict[str, Any]:
    try:
        found = json.loads(source)
    except json.JSONDecodeError as error:
        if source.startswith("\ufeff"):
            return _parse_object(source.lstrip("\ufeff"), place, row_name)
        reason = f"not JSON ({error.msg} at character {error.pos + 1})"
    except (ValueError, RecursionError) as error:
        reason = f"JSON that cannot be read ({error})"
    else:
        if isinstance(found, dict):
            return found
        reason = f"holds {_TYPE_NAMES[type(found)]}"
    raise BadDocument(
        f"{place}: {reason}; each {row_name} must be one JSON object", "not a JSON object"
    )


def _name_keys(found: dict[str, Any]) -> str:
    return repair(", ".join(list(found)[:_MAX_KEYS_SHOWN]))[0] or "none"
