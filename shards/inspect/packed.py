"""A packed set: its padding, what is cut or trained on, and whether its rows are sound."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.format import Int64, Manifest, Shard
from shards.rows import read_rows
from shards.sidecar import Marks, count_tokens, is_padding


def describe_packing(manifest: Manifest) -> str | None:
    """Rows, padding and documents that are cut, in words; None for a set that is not packed."""
    if manifest.row_tokens is None:
        return None
    shards = manifest.shards
    documents = sum(shard.num_documents for shard in shards)
    num_cut = sum(shard.num_cut for shard in shards)
    padding = sum(shard.padding_tokens for shard in shards)
    total = sum(shard.num_tokens for shard in shards)
    rows = (
        f"{total // manifest.row_tokens:,} rows of {manifest.row_tokens:,} tokens, "
        f"{padding:,} tokens of padding ({padding / max(total, 1):.2%})"
    )
    if manifest.chat is not None:
        return rows  # No chat is cut.
    cut = f"{num_cut:,} of {documents:,} documents cut, as they are longer than a row"
    return f"{rows}; {cut}"


def describe_loss(manifest: Manifest) -> str | None:
    """How many tokens are trained on, and all others, in words; None for a set without chats."""
    if manifest.chat is None:
        return None
    loss, others = manifest.chat["loss_tokens"], manifest.chat["other_tokens"]
    padding = sum(shard.padding_tokens for shard in manifest.shards)
    return (
        f"{manifest.chat['kind']}, {loss:,} tokens with loss + {others:,} without + "
        f"{padding:,} of padding = {loss + others + padding:,} "
        f"({loss / max(loss + others, 1):.2%} of the chats' tokens are trained on)"
    )


def estimate_cut(folder: Path, manifest: Manifest) -> float:
    """How many documents windows as long as rows would cut if documents lay one after another.

    A window's end falls inside a document of n tokens with a chance of (n - 1) / T, at most 1:
    this is the sum of these.
    """
    assert manifest.row_tokens is not None
    cut = 0
    for shard in manifest.shards:
        for rows in read_rows(folder, shard, ["num_tokens", "source_file"]):
            sizes = count_tokens(rows)[~is_padding(rows)]
            cut += int(np.minimum(sizes - 1, manifest.row_tokens).sum())
    return cut / manifest.row_tokens


def read_ends(folder: Path, shard: Shard) -> Iterator[tuple[Int64, Int64, Marks]]:
    """Where documents and padding begin and end in a packed shard, and which are padding."""
    for rows in read_rows(folder, shard, ["start", "num_tokens", "source_file"]):
        starts = rows.column("start").to_numpy().astype(np.int64)
        yield starts, starts + count_tokens(rows), is_padding(rows)


def find_wrong_packing(folder: Path, shard: Shard) -> str | None:
    """What in a shard's sidecar is not packed as the manifest says, in words; None if all is."""
    if shard.row_tokens is None:
        return None
    num_paddings = padding_tokens = 0
    for starts, ends, padding in read_ends(folder, shard):
        num_paddings += int(padding.sum())
        padding_tokens += int((ends - starts)[padding].sum())
        fits = ends - starts <= shard.row_tokens
        cut = (starts // shard.row_tokens != (ends - 1) // shard.row_tokens) & (fits | padding)
        if cut.any():
            return f"has {int(cut.sum()):,} documents in two rows that fit into one"
        if (ends[padding] % shard.row_tokens).any():
            return "has padding inside of a row; expected it at the end"
    if (num_paddings, padding_tokens) != (shard.num_paddings, shard.padding_tokens):
        return (
            f"has {num_paddings:,} paddings of {padding_tokens:,} tokens; expected "
            f"{shard.num_paddings:,} of {shard.padding_tokens:,}"
        )
    return None
