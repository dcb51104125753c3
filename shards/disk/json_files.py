"""JSON: read with errors that name the file, and encoded in the canonical form that is hashed."""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

Json = dict[str, Any]


def encode_canonical(value: object) -> bytes:
    """JSON in canonical form, as it is hashed: sorted keys, no spaces, UTF-8.

    >>> encode_canonical({"b": 1, "a": "é"}).decode()
    '{"a":"é","b":1}'
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8")


def hash_canonical(value: object) -> str:
    """The sha256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(encode_canonical(value)).hexdigest()


def load_json(path: Path, missing: str | None = None) -> Json:
    """Read a JSON object; ValueError with one line if that fails, `missing` for a missing file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(missing or f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    return parse_json(text, path)


def parse_json(text: str, path: Path | str) -> Json:
    """Parse a JSON object; `path` is what errors call it."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, not a {type(value).__name__}")
    return cast(Json, value)
