"""JSON: read with errors that name the file, and encoded in the canonical form that is hashed.

This is the one door for JSON files. What comes through it is a plain object: UTF-8, no key twice,
no NaN, text that can be written again, and of bounded size and depth, so that any code may walk it.

A sealed file vouches for each of its bytes. Its last two lines, as written, are SEAL, the sha256 of
all lines above, and the closing brace:

    head -n -2 manifest.json | sha256sum
"""

import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Any, NoReturn, cast

Json = dict[str, Any]

# Room for the manifest of a million source files.
MAX_JSON_BYTES = 256 << 20
# Ours are 6 deep.
MAX_DEPTH = 64
SEAL = "sha256_of_lines_above"
# Text of JSON that may hold half a surrogate pair.
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


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
    return parse_json(read_json(path, missing), path)


def read_json(path: Path, missing: str | None = None) -> bytes:
    """The bytes of a JSON file; ValueError if there is none, or it is too large to be one of ours.

    `missing` is the error for a missing file.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise ValueError(missing or f"{path}: no such file") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path}: is not a file; expected JSON")
    check_json_size(found.st_size, path)
    return path.read_bytes()


def check_json_size(num_bytes: int, path: Path | str) -> None:
    """ValueError for a file that is too large to be one of ours; `path` is what it is called."""
    if num_bytes > MAX_JSON_BYTES:
        raise ValueError(
            f"{path}: is larger than {MAX_JSON_BYTES:,} bytes, and no JSON file of a set or run is"
        )


def parse_json(text: str | bytes, path: Path | str, advice: str = "") -> Json:
    """Parse a JSON object; `path` is what errors call it, and `advice` is their end."""
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=make_object, parse_constant=refuse_constant)
        check_depth(value)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON (nested too deeply){advice}") from None
    except UnicodeEncodeError:
        fault = "a text with half a surrogate pair"
        raise ValueError(f"{path}: not valid JSON ({fault}){advice}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}){advice}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, not a {type(value).__name__}{advice}")
    return cast(Json, value)


def make_object(pairs: list[tuple[str, Any]]) -> Json:
    """An object of these keys and values; ValueError if a key occurs twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r:.60} occurs twice")
    return value


def refuse_constant(name: str) -> NoReturn:
    """ValueError for NaN and Infinity, which are Python's and not JSON's."""
    raise ValueError(f"{name} is not JSON")


def check_depth(value: object) -> None:
    """RecursionError if lists and objects are nested more than MAX_DEPTH deep.

    Checked level by level: deep JSON is refused before anything recursive walks it.
    """
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            part
            for whole in level
            if isinstance(whole, (dict, list))
            for part in (whole.values() if isinstance(whole, dict) else whole)
            if isinstance(part, (dict, list))
        ]
        if not level:
            return
    raise RecursionError


def seal_json(value: Json) -> str:
    """An object as the text of a sealed file, with SEAL as its last key.

    >>> print(seal_json({"a": 1}), end="")  # doctest: +ELLIPSIS
    {
     "a": 1,
     "sha256_of_lines_above": "caa4..."
    }
    """
    above = json.dumps(value, indent=1, ensure_ascii=False).removesuffix("\n}") + ",\n"
    return above + make_last_lines(above.encode("utf-8"))


def is_sealed(text: str | bytes, value: Json) -> bool:
    """Whether a sealed file's text, which holds `value`, is what was written.

    It is, too, if a tool has only laid it out anew: then the lines that would be written for the
    value have the hash. But a text as long as those is theirs with another byte somewhere, even if
    it means the same (1e-05 and 1E-05).
    """
    text = text.encode("utf-8") if isinstance(text, str) else text
    above, mark, rest = text.rpartition(f' "{SEAL}"'.encode())
    if mark + rest == make_last_lines(above).encode():
        return True
    written = seal_json({key: part for key, part in value.items() if key != SEAL}).encode("utf-8")
    return len(text) != len(written) and written.endswith(f'"{value[SEAL]}"\n}}\n'.encode())


def make_last_lines(above: bytes) -> str:
    """The last two lines of a sealed file that begins with the lines `above`."""
    return f' "{SEAL}": "{hashlib.sha256(above).hexdigest()}"\n}}\n'
