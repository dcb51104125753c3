"""Sets made with any tokenizer, by a plain loop: what prep makes of the same texts."""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from prep.manifest import describe_content
from prep.sources.local import Source
from prep.tokenizer.identity import SetTokenizer
from prep.units.receipts import Audit
from shards.disk.json_files import Json
from shards.format import Manifest, make_manifest, read_manifest
from shards.packing.writer import Packing, make_writer
from shards.sidecar import make_rows
from shards.widths import token_dtype
from shards.writer import WrittenShard, commit_shards

# Documents with these numbers modulo 10 are for validation.
VALIDATION = 7


@cache
def load_plain(tokenizer_json: str) -> Tokenizer:
    """The tokenizer, to which text that spells a special token is text."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text alone."""
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def write_set(
    folder: Path,
    tokenizer_json: str,
    texts: list[str],
    end: str,
    begin: str | None = None,
    shard_tokens: int = 4000,
    sources: Sequence[str] = ("texts",),
    row_tokens: int | None = None,
) -> Manifest:
    """A finished set of the texts with the token `end` after each and `begin` before each.

    Document n has the URL https://example.com/n, and is of source n modulo their number. With
    `row_tokens`, the set is packed.
    """
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    tokenizer = load_plain(tokenizer_json)
    end_id = tokenizer.token_to_id(end)
    assert end_id is not None
    begin_id = None if begin is None else tokenizer.token_to_id(begin)
    sha256 = hashlib.sha256(tokenizer_json.encode()).hexdigest()
    vocab_size = 1 + max(tokenizer.get_vocab().values())
    identity = SetTokenizer("test", sha256, vocab_size, end_id, begin_id)
    dtype = token_dtype(identity.token_bytes)
    packing = Packing(row_tokens, end_id) if row_tokens else None
    writers = {
        split: make_writer(
            folder, split, f"{split}-00000", shard_tokens, identity.token_bytes, packing
        )
        for split in ("train", "validation")
    }
    for number, text in enumerate(texts):
        before = [] if begin_id is None else [begin_id]
        ids = np.array([*before, *encode(tokenizer, text), end_id], dtype)
        rows = make_rows(
            np.array([len(ids)]),
            pa.array([sources[number % len(sources)]]),
            np.array([number]),
            pa.array([f"https://example.com/{number}"]),
            hashlib.sha256(text.encode()).digest()[:16],
        )
        writers[split_of(number)].append(ids, rows)
    written = [entry for writer in writers.values() for entry in writer.finish()]
    commit_shards(written, folder)
    num_validation = sum(split_of(number) == "validation" for number in range(len(texts)))
    audit = Audit(
        len(texts),
        len(texts) - num_validation,
        num_validation,
        text_bytes=sum(len(text.encode()) for text in texts),
        rows_by_source={
            name: len(texts[place :: len(sources)]) for place, name in enumerate(sources)
        },
    )
    policy = {"validation_fraction": "0.1"}
    content = describe_content(
        folder,
        [Source(name, 1, None) for name in sources],
        audit,
        policy,
        identity,
        None,
        row_tokens,
    )
    return write_manifest(folder, content, written, audit)


def write_manifest(
    folder: Path, content: Json, written: Sequence[WrittenShard], audit: Audit
) -> Manifest:
    """The manifest of a set that was written by hand, which makes it one."""
    hashes = {entry.shard.sidecar: entry.sidecar_sha256 for entry in written}
    text = make_manifest(
        content, [entry.shard for entry in written], audit.content, {"sidecar_sha256": hashes}
    )
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    return read_manifest(folder)


def split_of(number: int) -> str:
    """The split of document `number`."""
    return "validation" if number % 10 == VALIDATION else "train"
