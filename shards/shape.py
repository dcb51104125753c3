"""What a manifest must look like: a stranger's file is refused in one line, whatever it holds."""

from typing import Any

# A type, a list of one shape, or a dictionary of keys; a key with a question mark may be missing.
MANIFEST_SHAPE: dict[str, Any] = {
    "content": {
        "sources": {"files": [{"name": str, "num_bytes": int, "rows": int}]},
        "tokenizer": {
            "name": str,
            "sha256": str,
            "vocab_size": int,
            "end_of_text": int,
            "self_test": [{"text": str, "ids": [int]}],
        },
        "policy": dict,
        "shards": [
            {"split": str, "name": str, "num_tokens": int, "num_documents": int, "sha256": str}
        ],
        "parent?": {"dataset_id": str},
        "same_places?": [str],
    },
    "audit": {"dropped": dict},
    "environment": {"sidecar_sha256?": dict},
}
NAMES = {str: "text", int: "a number from 0 on", dict: "an object", list: "a list"}


def find_misshape(value: Any, shape: Any, place: str = "") -> str | None:
    """Where a value is not of a shape, in words; None where it is.

    >>> find_misshape({"a": [1, "2"]}, {"a": [int]})
    "a[1] is '2'; expected a number from 0 on"
    """
    kind = shape if isinstance(shape, type) else type(shape)
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits or (kind is int and value < 0):
        return f"{place} is {value!r:.60}; expected {NAMES[kind]}"
    if isinstance(shape, list):
        parts = ((entry, shape[0], f"{place}[{i}]") for i, entry in enumerate(value))
    elif isinstance(shape, dict):
        inner = f"{place}." if place else ""
        keys = {key.rstrip("?"): part for key, part in shape.items()}
        missing = [key for key in shape if not key.endswith("?") and key not in value]
        if missing:
            return f"{inner}{missing[0]} is missing"
        parts = ((value[key], part, inner + key) for key, part in keys.items() if key in value)
    else:
        return None
    return next((fault for part in parts if (fault := find_misshape(*part))), None)
