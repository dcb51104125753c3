"""The shape of manifest.json: every field that any code here reads, and what it may hold.

A key that is not here is read by nothing: it is kept as it is.
"""

import re
from collections.abc import Mapping, Sequence

from shards.disk.json_files import Json
from shards.disk.shapes import HASH, MAX_INT, NUMBER, Each, Only, OrNull
from shards.widths import MAX_TOKEN_BYTES, find_row_tokens, find_wrong_width

# 128 TB; a row group's counts that are at most this sum up within 64 bits.
MAX_SHARD_TOKENS = 1 << 46
# Files that list near copies, as prep names them.
COPIES_FILE = re.compile(r"copies-[0-9]{5,}\.parquet")
# One dataset of the Hub, as far as it is shown and compared.
HUB = OrNull({"repo": str, "revision": str})
POLICY = {"validation_fraction?": str, "imported?": str, "where?": [str], "keep_column?": [str]}
COUNTS = Each(int)
# What the entry of a packed set's shard has besides.
PACKING_COUNTS = ("num_paddings", "padding_tokens", "num_cut")
# What that of a shard of chats has: its tokens that are trained on.
LOSS_TOKENS = "loss_tokens"
# What the documents of a set of chats are.
CONVERSATIONS, PREFERENCES = "conversations", "preferences"
CHAT_SHAPE = {
    "kind": str,
    "template_sha256": HASH,
    "tokens?": Each(str),
    "end_of_turn?": int,
    LOSS_TOKENS: int,
    "other_tokens": int,
}

MANIFEST_SHAPE = {
    "content": {
        "format": {"token_dtype": str, "byte_order?": str, "row_tokens?": int},
        "sources": {
            "hub": HUB,
            "files": [{"name": str, "num_bytes": int, "sha256?": OrNull(str), "rows": int}],
        },
        "tokenizer": {
            "name": str,
            "sha256": HASH,
            "vocab_size": int,
            "end_of_text": int,
            "begin_of_text?": int,
            "self_test": [{"text": str, "ids": [int]}],
        },
        "policy": POLICY,
        "chat?": CHAT_SHAPE,
        # Nothing else: a further key would be lost in the next version.
        "shards": [
            Only(
                {
                    "split": str,
                    "name": str,
                    "num_tokens": int,
                    "num_documents": int,
                    "sha256": HASH,
                    **{f"{name}?": int for name in (*PACKING_COUNTS, LOSS_TOKENS)},
                }
            )
        ],
        "parent?": OrNull(
            {
                "dataset_id": HASH,
                "change?": str,
                "mode?": OrNull(str),
                "documents?": OrNull(int),
                "tokens?": OrNull(int),
                "split?": OrNull(str),
                "part?": OrNull(str),
                "ancestors?": OrNull([HASH]),
            }
        ),
        "ancestors?": [HASH],
        "same_places?": [HASH],
        "appended?": [{"hub": HUB, "files": int, "policy": POLICY, "plan_id": HASH}],
    },
    "totals": Each(COUNTS),
    "audit": {
        "documents_read?": int,
        "train?": int,
        "validation?": int,
        "dropped": COUNTS,
        "texts_repaired?": int,
        "text_bytes?": int,
        "rows_by_source?": COUNTS,
        "clusters?": COUNTS,
        "copies?": Each(HASH),
        "kinds?": COUNTS,
        "longest?": int,
    },
    "environment": {"seconds?": OrNull(NUMBER), "sidecar_sha256?": Each(HASH)},
}


def list_copies(audit: Json) -> Mapping[str, str]:
    """The files of a set that list its near copies, and their sha256s, as its audit names them."""
    found: Mapping[str, str] = audit.get("copies", {})
    return found


def find_strange_copies(audit: Json) -> str | None:
    """Which file of near copies is none, in words: its name might lead anywhere."""
    strange = [name for name in list_copies(audit) if not COPIES_FILE.fullmatch(name)]
    return f"audit.copies names {strange[0]!r:.60}, no list of copies" if strange else None


def find_wrong_rows(shard: Json, row_tokens: int | None) -> str | None:
    """What in a shard's entry cannot be true of packed rows, in words; or that there are none."""
    name, present = f"{shard['name']:.60}", [key for key in PACKING_COUNTS if key in shard]
    if row_tokens is None:
        return f"{name} has {present[0]}, and the set is not packed" if present else None
    if len(present) < len(PACKING_COUNTS):
        return f"{name} does not say how it is packed ({', '.join(PACKING_COUNTS)})"
    if shard["num_tokens"] % row_tokens:
        return f"{name} has {shard['num_tokens']:,} tokens; expected whole rows of {row_tokens:,}"
    num_paddings, padding = shard["num_paddings"], shard["padding_tokens"]
    if not num_paddings <= padding <= num_paddings * row_tokens <= shard["num_tokens"]:
        return f"{name} has {num_paddings:,} paddings of {padding:,} tokens, which cannot be"
    return None


def count_chat(shards: Sequence[Json]) -> Json:
    """The tokens of a set of chats that are trained on, and its others but for padding."""
    loss = sum(shard.get(LOSS_TOKENS, 0) for shard in shards)
    total = sum(shard["num_tokens"] - shard.get("padding_tokens", 0) for shard in shards)
    return {LOSS_TOKENS: loss, "other_tokens": total - loss}


def find_wrong_chat(content: Json) -> str | None:
    """What cannot be true of a set's chats, in words; None if all can, or if it has none."""
    chat, shards = content.get("chat"), content["shards"]
    counted = [shard for shard in shards if LOSS_TOKENS in shard]
    if chat is None:
        named = f"{counted[0]['name']:.60}" if counted else ""
        return f"{named} has {LOSS_TOKENS}, and the set is not one of chats" if counted else None
    if chat["kind"] not in (CONVERSATIONS, PREFERENCES):
        return f"content.chat.kind is {chat['kind']:.60}; expected {CONVERSATIONS} or {PREFERENCES}"
    turn, vocab_size = chat.get("end_of_turn", 0), content["tokenizer"]["vocab_size"]
    if not 0 <= turn < vocab_size:
        return f"content.chat.end_of_turn is {turn}, and the tokenizer has {vocab_size:,} ids"
    if "row_tokens" not in content["format"] or len(counted) < len(shards):
        return "content.chat is there, and a shard is not packed, or has no " + LOSS_TOKENS
    for shard in shards:
        if shard[LOSS_TOKENS] > shard["num_tokens"] - shard["padding_tokens"]:
            return f"{shard['name']:.60} has more {LOSS_TOKENS} than tokens"
    if any(chat[key] != count for key, count in count_chat(shards).items()):
        return f"content.chat does not have the {LOSS_TOKENS} and other_tokens of its shards"
    return None


def find_contradiction(raw: Json, totals: Json) -> str | None:
    """What cannot be true of a manifest that has MANIFEST_SHAPE, in words; None if all can.

    `totals` are those of its shards.
    """
    content = raw["content"]
    fault = find_wrong_width(raw["schema_version"], content) or find_strange_copies(raw["audit"])
    if fault:
        return fault
    for shard in content["shards"]:
        if shard["num_tokens"] > MAX_SHARD_TOKENS:
            return f"{shard['name']:.60} has more tokens than any file holds"
        if fault := find_wrong_rows(shard, find_row_tokens(content)):
            return fault
        # Each document ends in a token of its own.
        if shard["num_documents"] > shard["num_tokens"]:
            return (
                f"{shard['name']:.60} has {shard['num_documents']:,} documents of "
                f"{shard['num_tokens']:,} tokens; expected at least a token each"
            )
    if sum(shard["num_tokens"] for shard in content["shards"]) > MAX_INT // MAX_TOKEN_BYTES:
        return "the shards have more tokens than any disk holds"
    if fault := find_wrong_chat(content):
        return fault
    if raw["totals"] != totals:
        return "totals are not those of its shards"
    if sum(e["files"] for e in content.get("appended", [])) > len(content["sources"]["files"]):
        return "content.appended has more files than content.sources"
    return None
