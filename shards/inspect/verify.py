"""Checks a set against its manifest; reports each damaged file and where it is damaged."""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from shards.disk.durable import hash_file
from shards.disk.layout import CHAT_TEMPLATE, TOKENIZER
from shards.files import ShardFile
from shards.format import Int64, Manifest, Shard, read_manifest
from shards.index.state import verify_index
from shards.inspect.chats import find_wrong_loss
from shards.inspect.packed import find_wrong_packing
from shards.rows import SidecarError, read_block_checksums, read_rows
from shards.schema import list_copies
from shards.screen.lines import ReadProgress
from shards.screen.names import advise_verify
from shards.sidecar import BLOCK_BYTES, count_tokens
from shards.tokenizer import load_checked_tokenizer
from shards.widths import Tokens

LOST = "is missing, or its sha256 is not the manifest's"


def verify_shards(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Re-read everything; yields each file's name with None, or with what is wrong with it."""
    manifest = read_manifest(folder)
    yield TOKENIZER, verify_tokenizer(folder, manifest)
    if manifest.chat is not None:
        path, sha256 = folder / CHAT_TEMPLATE, manifest.chat["template_sha256"]
        is_whole = path.is_file() and hash_file(path) == sha256
        yield CHAT_TEMPLATE, None if is_whole else LOST
    for shard in manifest.shards:
        yield from verify_shard(folder, shard, manifest)
    for name, sha256 in list_copies(manifest.audit).items():
        is_whole = (folder / name).is_file() and hash_file(folder / name) == sha256
        yield name, None if is_whole else LOST
    yield from verify_index(folder, manifest)


def verify_shard(
    folder: Path, shard: Shard, manifest: Manifest
) -> Iterator[tuple[str, str | None]]:
    """Re-read a shard's files; yields each one's name with None, or with what is wrong with it."""
    fault, ends = verify_sidecar(folder, shard, manifest)
    yield shard.sidecar, fault
    yield shard.name, verify_tokens(folder, shard, manifest, ends)


def check_shards(folder: Path, manifest: Manifest, shards: Sequence[Shard]) -> None:
    """Re-read some shards of a set; ValueError if a file is damaged."""
    progress = ReadProgress("tokens checked", sum(shard.num_tokens for shard in shards))
    for shard in shards:
        for name, fault in verify_shard(folder, shard, manifest):
            if fault:
                raise ValueError(f"{folder / name}: {fault}; {advise_verify(folder)}")
        progress.add(shard.num_tokens)
    progress.finish()


def verify_tokenizer(folder: Path, manifest: Manifest) -> str | None:
    """What is wrong with the set's tokenizer.json, if anything."""
    try:
        if hash_file(folder / TOKENIZER) != manifest.content["tokenizer"]["sha256"]:
            return "its sha256 is not the manifest's"
        load_checked_tokenizer(folder, manifest)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def verify_sidecar(
    folder: Path, shard: Shard, manifest: Manifest
) -> tuple[str | None, Int64 | None]:
    """What is wrong with a shard's sidecar, if anything; if nothing, where its documents end."""
    path = folder / shard.sidecar
    if not path.is_file():
        return "is missing", None
    sha256 = manifest.sidecar_sha256(shard)
    if sha256 is not None and hash_file(path) != sha256:
        unsure = "" if manifest.is_sealed else "; one of the two is damaged"
        return f"its sha256 is not the manifest's{unsure}", None
    try:
        sizes = [count_tokens(rows) for rows in read_rows(folder, shard, ["start", "num_tokens"])]
        fault = find_wrong_packing(folder, shard) or find_wrong_loss(folder, shard, manifest)
    except SidecarError as error:
        fault = error.fault
    if fault is not None:
        return fault, None
    return None, np.cumsum(np.concatenate([np.empty(0, np.int64), *sizes]))


def verify_tokens(folder: Path, shard: Shard, manifest: Manifest, ends: Int64 | None) -> str | None:
    """What is wrong with a .bin, if anything, and in which bytes; `ends` are its documents'."""
    try:
        return verify_blocks(folder, shard, manifest, ends)
    except ValueError as error:  # It is missing, has another size, or cannot be read.
        return str(error)


def verify_blocks(folder: Path, shard: Shard, manifest: Manifest, ends: Int64 | None) -> str | None:
    """The same; ValueError if the file is not there, has another size, or cannot be read."""
    sha256 = hashlib.sha256()
    largest, num_open = 0, 0
    for start, tokens in read_blocks(folder, shard):
        sha256.update(tokens.data)
        largest = max(largest, int(tokens.max()))
        if ends is not None:
            low, high = np.searchsorted(ends - 1, (start, start + len(tokens)))
            last_tokens = tokens[ends[low:high] - 1 - start]
            num_open += int((last_tokens != manifest.end_of_text).sum())
    if sha256.hexdigest() != shard.sha256:
        place = "(no sound sidecar to say where)" if ends is None else locate_damage(folder, shard)
        return f"its sha256 is not the manifest's; damaged {place}"
    # The hash proves that nothing has changed since prep; these check what prep wrote.
    if largest >= manifest.vocab_size:
        return f"holds the id {largest}; the tokenizer has {manifest.vocab_size}"
    if num_open:
        return f"has {num_open:,} documents that do not end in the end-of-document token"
    return None


def read_blocks(folder: Path, shard: Shard) -> Iterator[tuple[int, Tokens]]:
    """A .bin's tokens in blocks of 1 MiB, each with its position; valid until the next block.

    They share one buffer, which stays in a core's cache while three passes read it.
    """
    buffer: Tokens = np.empty(BLOCK_BYTES // shard.token_bytes, shard.dtype)
    with ShardFile(folder, shard) as file:
        for start in range(0, shard.num_tokens, len(buffer)):
            block = buffer[: shard.num_tokens - start]
            file.read(block.data.cast("B"), start * shard.token_bytes)
            yield start, block


def locate_damage(folder: Path, shard: Shard) -> str:
    """The bytes and tokens of each MiB whose checksum is not the one taken when it was written."""
    places = []
    checksums = read_block_checksums(folder, shard)
    if not checksums:
        return "(the sidecar has no checksums to say where)"
    width = shard.token_bytes
    for (first, tokens), expected in zip(read_blocks(folder, shard), checksums, strict=True):
        if zlib.crc32(tokens.data) != expected:
            start, stop = first * width, first * width + BLOCK_BYTES
            places.append(f"bytes {start:,} to {stop:,} (tokens {first:,} to {stop // width:,})")
    return "in " + ", ".join(places) if places else "somewhere outside its checksummed blocks"
