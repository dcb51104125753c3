"""A set of chats: how much of it is trained on, and which tokens those are."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from shards.chat.labels import BEGIN, LOSS, REJECTED, Bits, open_labels
from shards.chat.spans import read_chat_rows
from shards.disk.json_files import Json
from shards.format import Manifest, Shard
from shards.inspect.show import fit_window
from shards.reader import Shards
from shards.tokenizer import read_set_spelling
from shards.widths import Tokens


@dataclass(frozen=True)
class Part:
    """Tokens in a row that are all trained on, or none of which is."""

    text: str
    is_trained: bool
    # Whether they are of the rejected half of a pair.
    is_rejected: bool


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


@dataclass(frozen=True)
class Marked:
    """Tokens of a set of chats with their labels, from the place `start` of a split on."""

    split: str
    start: int
    tokens: Tokens
    labels: Bits
    parts: list[Part]

    @property
    def json(self) -> Json:
        """It as JSON: ids, and 1 for each that is trained on, begins a chat, or is rejected."""
        return {
            "split": self.split,
            "start": self.start,
            "ids": self.tokens.tolist(),
            "loss": (self.labels & LOSS).tolist(),
            "begin": ((self.labels & BEGIN) // BEGIN).tolist(),
            "rejected": ((self.labels & REJECTED) // REJECTED).tolist(),
            "text": "".join(part.text for part in self.parts),
        }


def mark_tokens(shards: Shards, split: str, start: int, count: int) -> Marked:
    """Tokens of a set of chats, in parts that are trained on and parts that are not.

    Raises ValueError for a set without chats, and for a window as `show_window` does.
    """
    labels = open_labels(shards, split)
    count = fit_window(shards, split, start, count)
    tokens = shards.stream(split).read(start, count)
    bits = labels.read(np.array([start]), count)[0]
    spelling = read_set_spelling(shards.folder, shards.manifest)
    edges = np.flatnonzero(np.diff(bits & (LOSS | REJECTED))) + 1
    bounds = [0, *edges.tolist(), count]
    parts = [
        Part(
            spelling.spell(tokens[a:b].tolist(), bool(bits[a] & BEGIN)),
            bool(bits[a] & LOSS),
            bool(bits[a] & REJECTED),
        )
        for a, b in pairwise(bounds)
    ]
    return Marked(split, start, tokens, bits, parts)
