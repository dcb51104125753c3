"""How wide the ids of a set are: uint16, or uint32 for a tokenizer with more than 65,536 ids.

The manifest says it once for all shards, as `content.format.token_dtype`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from shards.disk.json_files import Json

# Ids, as wide as their set's.
Tokens = npt.NDArray[np.unsignedinteger[Any]]
Dtype = np.dtype[np.unsignedinteger[Any]]

# The bytes of an id, by the dtype that the manifest names.
TOKEN_BYTES = {"uint16": 2, "uint32": 4}
MAX_TOKEN_BYTES = max(TOKEN_BYTES.values())
# The manifest's schema_version, by the bytes of an id. Velocity before uint32 knows 1 only: it
# refuses 2 instead of reading each id as two.
SCHEMA_VERSIONS = {2: 1, 4: 2}
# That of a packed set, whatever its ids: who knows nothing of rows would read across them.
PACKED_SCHEMA_VERSION = 3
# That of a set of chats, which is packed too: who knows nothing of its loss mask would train on
# every token of it.
CHAT_SCHEMA_VERSION = 4
KNOWN_VERSIONS = (*SCHEMA_VERSIONS.values(), PACKED_SCHEMA_VERSION, CHAT_SCHEMA_VERSION)
# Of a row's tokens, one at least is predicted.
MIN_ROW_TOKENS = 2
# How many ids that many bytes can tell apart; for uint32 only as many as int32, which others read.
MAX_IDS = {2: 1 << 16, 4: 1 << 31}


def choose_token_bytes(vocab_size: int) -> int:
    """The bytes that hold every id of a tokenizer; ValueError if there are more than 2^31.

    >>> choose_token_bytes(50257), choose_token_bytes(65536), choose_token_bytes(128256)
    (2, 2, 4)
    """
    for token_bytes, most in MAX_IDS.items():
        if vocab_size <= most:
            return token_bytes
    raise ValueError(f"the tokenizer has {vocab_size:,} ids; expected at most {most:,}")


def token_dtype(token_bytes: int) -> Dtype:
    """The dtype of ids with this many bytes: little-endian, whatever machine reads them."""
    return np.dtype(f"<u{token_bytes}")


def describe_format(token_bytes: int, row_tokens: int | None = None, is_chat: bool = False) -> Json:
    """What the manifest says about the .bin files, in `content.format`."""
    packed = {} if row_tokens is None else {"row_tokens": row_tokens}
    return {
        "schema_version": choose_schema_version(token_bytes, row_tokens, is_chat),
        "token_dtype": token_dtype(token_bytes).name,
        "byte_order": "little",
        **packed,
    }


def choose_schema_version(token_bytes: int, row_tokens: int | None, is_chat: bool = False) -> int:
    """The manifest's schema_version, for ids of so many bytes and, in a packed set, its rows."""
    if is_chat:
        return CHAT_SCHEMA_VERSION
    return SCHEMA_VERSIONS[token_bytes] if row_tokens is None else PACKED_SCHEMA_VERSION


def find_token_bytes(content: Json) -> int:
    """The bytes of an id in the set whose manifest has this content."""
    return TOKEN_BYTES[content["format"]["token_dtype"]]


def find_row_tokens(content: Json) -> int | None:
    """The tokens of a row in the packed set whose manifest has this content; None if in no rows."""
    row_tokens: int | None = content["format"].get("row_tokens")
    return row_tokens


def find_wrong_width(schema_version: int, content: Json) -> str | None:
    """What in a manifest contradicts the width of its ids, in words; None if nothing does."""
    dtype, tokenizer = content["format"]["token_dtype"], content["tokenizer"]
    if dtype not in TOKEN_BYTES:
        return f"content.format.token_dtype is {dtype:.60}; expected {' or '.join(TOKEN_BYTES)}"
    order = content["format"].get("byte_order", "little")
    if order != "little":
        return f"content.format.byte_order is {order:.60}; expected little"
    row_tokens, most = find_row_tokens(content), MAX_IDS[TOKEN_BYTES[dtype]]
    if row_tokens is not None and row_tokens < MIN_ROW_TOKENS:
        return f"content.format.row_tokens is {row_tokens}; expected at least {MIN_ROW_TOKENS}"
    is_chat = "chat" in content
    version = choose_schema_version(TOKEN_BYTES[dtype], row_tokens, is_chat)
    if schema_version != version:
        kind = f"ids of {dtype}" if row_tokens is None else "a packed set"
        kind = "a set of chats" if is_chat else kind
        return f"schema_version is {schema_version}; expected {version} for {kind}"
    num_ids, end, begin = (
        tokenizer.get(k, 0) for k in ("vocab_size", "end_of_text", "begin_of_text")
    )
    if not end < num_ids <= most:
        return (
            f"content.tokenizer has {num_ids:,} ids, the last of a document {end:,}; expected at "
            f"most {most:,} ids and that one of them"
        )
    if not begin < num_ids:
        return (
            f"content.tokenizer has {num_ids:,} ids, the first of a document {begin:,}; expected "
            "one of them"
        )
    return None
