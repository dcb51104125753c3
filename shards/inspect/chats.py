"""A set of chats: how much of it is trained on, and which tokens those are."""

from pathlib import Path

from shards.chat.spans import read_chat_rows
from shards.format import Manifest, Shard


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


def find_wrong_loss(folder: Path, shard: Shard, manifest: Manifest) -> str | None:
    """What in a shard's sidecar is not trained on as the manifest says, in words.

    SidecarError for spans that no document has.
    """
    if manifest.chat is None:
        return None
    found = 0
    for rows in read_chat_rows(folder, shard, manifest.chat["kind"]):
        found += int((rows.loss[:, 1] - rows.loss[:, 0]).sum())
    if found == shard.loss_tokens:
        return None
    return f"marks {found:,} tokens that are trained on; expected {shard.loss_tokens:,}"
