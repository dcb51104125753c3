"""A set in words: what it holds, and its documents and windows as text."""

from collections.abc import Iterator
from pathlib import Path

from shards.documents import Document, Sidecars, find_documents, match_hash, match_url
from shards.format import SPLITS, Manifest, check_split
from shards.index.state import describe_index
from shards.inspect.packed import describe_loss, describe_packing
from shards.reader import Shards
from shards.tokenizer import read_set_spelling

# Tokens that are decoded at a time: about 16 MB of text.
MAX_SHOWN_TOKENS = 1 << 22


def describe_set(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What the set in `folder` holds and where it came from, line by line."""
    yield f"dataset_id  {manifest.dataset_id}"
    parent = manifest.parent
    if parent:
        details = ", ".join(f"{k}={v}" for k, v in parent.describe().items() if k != "dataset_id")
        yield f"version     made from {parent.dataset_id[:12]}: {details}"
    hub = manifest.content["sources"]["hub"]
    files = manifest.content["sources"]["files"]
    elsewhere = "files at URLs" if any("://" in file["name"] for file in files) else "local files"
    origin = f"{hub['repo']} at {hub['revision']}" if hub else elsewhere
    yield f"source      {origin}, {len(files):,} files, {sum(f['rows'] for f in files):,} rows"
    tokenizer = manifest.content["tokenizer"]
    dtype = manifest.content["format"]["token_dtype"]
    yield f"tokenizer   {tokenizer['name']}, {tokenizer['vocab_size']:,} ids as {dtype}"
    for split in SPLITS:
        shards = manifest.split(split)
        documents = sum(shard.num_documents for shard in shards)
        yield (
            f"{split:<11} {manifest.num_tokens(split):,} tokens, {documents:,} documents, "
            f"{len(shards):,} shards"
        )
    if packing := describe_packing(manifest):
        yield f"packing     {packing}"
    if loss := describe_loss(manifest):
        yield f"chats       {loss}"
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in manifest.audit["dropped"].items())
    yield f"dropped     {dropped}"
    policy = manifest.content["policy"]
    yield "policy      " + ", ".join(f"{k}={v}" for k, v in policy.items() if v is not None)
    yield f"index       {describe_index(folder, manifest)}"


def show_window(shards: Shards, split: str, start: int, count: int) -> str:
    """`count` tokens of a split from `start` on as text, or as many as there are.

    Raises ValueError for a place outside the split, or for more than is decoded at a time.
    """
    count = fit_window(shards, split, start, count)
    spelling = read_set_spelling(shards.folder, shards.manifest)
    stream = shards.stream(split)
    marks = (spelling.end_of_text, spelling.begin_of_text)
    is_first = start == 0 or stream.read(start - 1, 1)[0] in marks
    return spelling.spell(stream.read(start, count).tolist(), is_first)


def fit_window(shards: Shards, split: str, start: int, count: int) -> int:
    """How many of `count` tokens from `start` on there are; ValueError as `show_window` raises."""
    check_split(split)
    num_tokens = shards.manifest.num_tokens(split)
    if not 0 <= start < num_tokens:
        raise ValueError(
            f"--start is {start!s:.60}; {split} of {shards.folder} has {num_tokens:,} tokens, "
            "counted from 0"
        )
    if count < 1:
        raise ValueError(f"--tokens is {count!s:.60}; expected at least 1")
    count = min(count, num_tokens - start)
    if count > MAX_SHOWN_TOKENS:
        raise ValueError(
            f"--tokens is {count:,}; expected at most {MAX_SHOWN_TOKENS:,} at a time: "
            "go on from there with --start"
        )
    return count


def decode_document(shards: Shards, split: str, document: Document) -> str:
    """A document's text, as it was before prep; "(removed)" if nothing of it is left."""
    if document.is_blank:
        return "(removed)"
    spelling = read_set_spelling(shards.folder, shards.manifest)
    ids = shards.stream(split).read(document.start, document.num_tokens - 1).tolist()
    has_begin = spelling.begin_of_text is not None
    return spelling.spell(ids[has_begin:], is_first=True)


class NoDocumentError(ValueError):
    """A set that has no such document."""


def choose_documents(
    shards: Shards, split: str, index: int | None, url: str | None, doc_hash: str | None
) -> list[tuple[str, Document]]:
    """The documents with a number in the split, a URL or a hash, each with its split.

    Only the first of these that is given counts. Raises ValueError if none is, NoDocumentError if
    no document is found.
    """
    check_split(split)
    if index is not None:
        return [(split, Sidecars(shards, split).at_index(index))]
    if url is not None:
        wanted, matches = f"URL {url}", match_url(url)
    elif doc_hash is not None:
        wanted, matches = f"hash {doc_hash}", match_hash(doc_hash)
    else:
        raise ValueError("which document? name it with --document, --url or --doc-hash")
    found = list(find_documents(shards, matches))
    if not found:
        raise NoDocumentError(f"{shards.folder}: no document with the {wanted}")
    return found
