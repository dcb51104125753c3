"""The shape of manifest.json: every field that any code here reads, and what it may hold.

A key that is not here is read by nothing: it is kept as it is.
"""

import re
from collections.abc import Mapping

from shards.disk.json_files import Json
from shards.disk.shapes import HASH, NUMBER, Each, Only, OrNull

# Files that list near copies, as prep names them.
COPIES_FILE = re.compile(r"copies-[0-9]{5,}\.parquet")
# One dataset of the Hub, as far as it is shown and compared.
HUB = OrNull({"repo": str, "revision": str})
POLICY = {"validation_fraction?": str, "imported?": str, "where?": [str], "keep_column?": [str]}
COUNTS = Each(int)
# What the entry of a packed set's shard has besides.
PACKING_COUNTS = ("num_paddings", "padding_tokens", "num_cut")

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
        # Nothing else: a further key would be lost in the next version.
        "shards": [
            Only(
                {
                    "split": str,
                    "name": str,
                    "num_tokens": int,
                    "num_documents": int,
                    "sha256": HASH,
                    **{f"{name}?": int for name in PACKING_COUNTS},
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
