"""Is the set still what its manifest says? Names each damaged file, and where it is damaged."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.durable import hash_file
from shards.format import TOKEN_BYTES, TOKENIZER, Manifest, Shard, read_manifest
from shards.reader import map_shard
from shards.tokenizer import load_checked_tokenizer
from shards.writer import BLOCK_BYTES, read_block_checksums


def verify_shards(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Re-read everything; yields each file's name with None, or with what is wrong in it."""
    manifest = read_manifest(folder)
    yield TOKENIZER, verify_tokenizer(folder, manifest)
    sidecar_hashes = manifest.environment.get("sidecar_sha256", {})
    for shard in manifest.shards:
        sidecar_fault = verify_sidecar(folder, shard, sidecar_hashes.get(shard.sidecar))
        yield shard.sidecar, sidecar_fault
        yield shard.name, verify_tokens(folder, shard, manifest, sidecar_fault is None)


def verify_tokenizer(folder: Path, manifest: Manifest) -> str | None:
    """What is wrong with the set's tokenizer.json, if anything."""
    try:
        if hash_file(folder / TOKENIZER) != manifest.content["tokenizer"]["sha256"]:
            return "its sha256 is not the manifest's"
        load_checked_tokenizer(folder, manifest)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def verify_sidecar(folder: Path, shard: Shard, sha256: str | None) -> str | None:
    """What is wrong with a shard's docs.parquet, if anything."""
    path = folder / shard.sidecar
    if not path.is_file():
        return "is missing"
    if sha256 is not None and hash_file(path) != sha256:
        return "its sha256 is not the manifest's"
    try:
        table = pq.ParquetFile(path).read(columns=["start", "num_tokens"])
    except (OSError, pa.ArrowException) as error:
        return f"cannot be read as parquet ({error})"
    starts, sizes = (table[name].to_numpy().astype(np.int64) for name in ("start", "num_tokens"))
    if len(sizes) != shard.num_documents or sizes.sum() != shard.num_tokens:
        return (
            f"has {len(sizes):,} documents of {sizes.sum():,} tokens; "
            f"expected {shard.num_documents:,} of {shard.num_tokens:,}"
        )
    if not np.array_equal(starts, np.cumsum(sizes) - sizes):
        return "its documents do not lie one behind the other"
    return None


def verify_tokens(
    folder: Path, shard: Shard, manifest: Manifest, has_sidecar: bool = True
) -> str | None:
    """What is wrong with a .bin, if anything, and in which bytes."""
    try:
        tokens = map_shard(folder, shard)
    except ValueError as error:
        return str(error)
    if hash_file(folder / shard.name) != shard.sha256:
        place = locate_damage(folder, shard) if has_sidecar else "(no sidecar to say where)"
        return f"its sha256 is not the manifest's; damaged {place}"
    # The hash proves that nothing changed since prep; these prove what prep wrote.
    if int(tokens.max()) >= manifest.vocab_size:
        return f"holds the id {int(tokens.max())}; the tokenizer has {manifest.vocab_size}"
    if has_sidecar:
        table = pq.ParquetFile(folder / shard.sidecar).read(columns=["start", "num_tokens"])
        ends = table["start"].to_numpy() + table["num_tokens"].to_numpy() - np.uint64(1)
        if not (tokens[ends] == manifest.end_of_text).all():
            return "has a document that does not end in <|endoftext|>"
    return None


def locate_damage(folder: Path, shard: Shard) -> str:
    """The bytes and tokens of each MiB whose checksum is not the one taken by prep."""
    metadata = pq.ParquetFile(folder / shard.sidecar).metadata.metadata
    places = []
    with open(folder / shard.name, "rb") as file:
        for index, expected in enumerate(read_block_checksums(metadata)):
            if zlib.crc32(file.read(BLOCK_BYTES)) != expected:
                start = index * BLOCK_BYTES
                places.append(
                    f"bytes {start:,} to {start + BLOCK_BYTES:,} (tokens "
                    f"{start // TOKEN_BYTES:,} to {(start + BLOCK_BYTES) // TOKEN_BYTES:,})"
                )
    return "in " + ", ".join(places) if places else "somewhere outside its checksummed blocks"
