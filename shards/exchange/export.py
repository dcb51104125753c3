"""Exports a split of a set in another trainer's format: Megatron's PREFIX.bin and PREFIX.idx."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from shards.disk.durable import commit, naming, open_new, sync_file
from shards.disk.space import check_space
from shards.documents import read_pieces
from shards.exchange.megatron import CODES, HEADER, MAGIC, VERSION
from shards.format import Int64, Shard, check_split
from shards.reader import Shards
from shards.rows import read_rows
from shards.screen.lines import ReadProgress
from shards.screen.names import advise_verify
from shards.sidecar import count_tokens, is_blank


def export_megatron(shards: Shards, split: str, prefix: Path) -> str:
    """Write a split as PREFIX.bin and PREFIX.idx; returns a line for the user.

    A document is one sequence, its end-of-document token included. Both files are written under
    temporary names and get their own once they are whole, the index last.

    Raises ValueError if a file is in the way or a shard is damaged.
    """
    if shards.manifest.chat is not None:
        raise ValueError(
            f"{shards.folder}: is a set of chats, and this format cannot say which tokens are "
            "trained on: who reads it would train on all of them"
        )
    if not prefix.name:
        raise ValueError(f"{prefix}: is a folder; expected what the files' names begin with")
    chosen = choose_shards(shards, split)
    bin_path, idx_path = (prefix.with_name(f"{prefix.name}.{end}") for end in ("bin", "idx"))
    for path in (bin_path, idx_path):
        if path.exists():
            raise ValueError(f"{path}: already exists; nothing is overwritten, choose another")
    check_disk(prefix, chosen)
    temporary = [path.with_name(f"{path.name}.tmp") for path in (bin_path, idx_path)]
    try:
        with open_new(temporary[0]) as file:
            copy_tokens(shards, chosen, file)
            with naming(temporary[0]):
                sync_file(file)
        with open_new(temporary[1]) as file:
            num_documents = write_index(shards, chosen, file)
            with naming(temporary[1]):
                sync_file(file)
        commit(temporary[0], bin_path)
        commit(temporary[1], idx_path)
    finally:
        for path in temporary:
            with suppress(FileNotFoundError):
                path.unlink()
    num_tokens = bin_path.stat().st_size // chosen[0].token_bytes
    return f"{bin_path}, {idx_path.name}: {num_documents:,} documents, {num_tokens:,} tokens"


def write(file: BinaryIO, content: bytes | memoryview) -> None:
    """Write to one of the files; an error names it."""
    with naming(Path(file.name)):
        file.write(content)


def choose_shards(shards: Shards, split: str) -> list[Shard]:
    """The split's shards; ValueError if there are none."""
    check_split(split)
    chosen = shards.manifest.split(split)
    if not chosen:
        raise ValueError(f"{shards.folder}: has no {split} tokens to export")
    return chosen


def check_disk(prefix: Path, chosen: list[Shard]) -> None:
    """ValueError if the two files do not fit on the disk."""
    folder = prefix.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; make it first")
    needed = sum(shard.num_bytes + 20 * shard.num_documents for shard in chosen)
    check_space(folder, needed, "choose another PREFIX")


def copy_tokens(shards: Shards, chosen: list[Shard], file: BinaryIO) -> None:
    """Copy the documents of each shard, checking its sha256 along the way."""
    progress = ReadProgress("tokens", sum(shard.num_tokens for shard in chosen))
    for shard in chosen:
        sha256 = hashlib.sha256()
        for _, tokens, rows in read_pieces(shards.folder, shard):
            sha256.update(tokens.data.cast("B"))
            kept = ~is_blank(rows.column("doc_hash"))
            if not kept.all():
                tokens = tokens[np.repeat(kept, count_tokens(rows))]
            write(file, tokens.data.cast("B"))
            progress.add(len(tokens))
        if sha256.hexdigest() != shard.sha256:
            raise ValueError(
                f"{shards.folder / shard.name}: its sha256 is not the manifest's; "
                f"{advise_verify(shards.folder)}"
            )
    progress.finish()


def write_index(shards: Shards, chosen: list[Shard], file: BinaryIO) -> int:
    """Write the .idx list by list, each from its own pass over the sidecars."""
    token_bytes = shards.manifest.token_bytes
    num_documents = sum(len(sizes) for sizes in read_sizes(shards, chosen))
    write(file, HEADER.pack(MAGIC, VERSION, CODES[token_bytes], num_documents, num_documents + 1))
    for sizes in read_sizes(shards, chosen):
        if int(sizes.max(initial=0)) >= 1 << 31:
            raise ValueError(
                f"{shards.folder}: a document has {int(sizes.max()):,} tokens; "
                "Megatron's index holds at most 2,147,483,647"
            )
        write(file, sizes.astype("<i4").tobytes())
    position = 0
    for sizes in read_sizes(shards, chosen):
        ends = position + np.cumsum(sizes) * token_bytes
        write(file, (ends - sizes * token_bytes).astype("<i8").tobytes())
        position = int(ends[-1]) if len(ends) else position
    for start in range(0, num_documents + 1, 1 << 20):
        stop = min(start + (1 << 20), num_documents + 1)
        write(file, np.arange(start, stop, dtype="<i8").tobytes())
    return num_documents


def read_sizes(shards: Shards, chosen: list[Shard]) -> Iterator[Int64]:
    """The sizes of all documents in tokens, in order, without removed ones."""
    for shard in chosen:
        for batch in read_rows(shards.folder, shard, ["num_tokens", "doc_hash"]):
            yield count_tokens(batch)[~is_blank(batch.column("doc_hash"))]
