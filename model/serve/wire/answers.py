"""JSON and server-sent events as bytes: always ASCII, so that no text can break a line of them."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

# What an answer says that is not for a cache, nor for guesses at its type.
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def encode(value: object) -> bytes:
    """A value as JSON on one line. A number that JSON does not have is an error of ours."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def make_json(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer that is one JSON value."""
    return Response(
        encode(value), status, {**HEADERS, **(headers or {})}, media_type="application/json"
    )


def make_event(value: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event of a stream, with a name where the API has names for them.

    >>> make_event({"text": "a line's end: \\n"}, "delta")
    b'event: delta\\ndata: {"text":"a line\\'s end: \\\\n"}\\n\\n'
    """
    begin = f"event: {name}\n".encode() if name else b""
    return begin + b"data: " + encode(value) + b"\n\n"


END_OF_STREAM = b"data: [DONE]\n\n"
