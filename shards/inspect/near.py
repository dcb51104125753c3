"""Counts near copies in a finished set: its tokens as text, signed and clustered as prep does.

What is counted is what `velocity prep --dedup near` would drop with its usual settings, exact
copies included, but for texts without words. It takes 8 bytes of memory a document and more
(shards/near/clusters.py); the files that are needed meanwhile are in the system's temporary folder.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.disk.space import check_space
from shards.format import Int64, Manifest, Shard
from shards.near.clusters import ClusterFinder, Clusters, measure_need
from shards.near.signatures import NearSettings
from shards.near.texts import TokenText, sign_shard
from shards.rows import read_rows
from shards.screen.lines import ReadProgress
from shards.sidecar import count_tokens
from shards.tokenizer import read_set_spelling


@dataclass
class NearDuplicates:
    """How much of a set is nearly the same as something else in it."""

    # Groups of texts that are near copies, or near copies of such.
    clusters: int = 0
    # Documents beyond the first of each, and their tokens.
    documents: int = 0
    tokens: int = 0
    # Documents in the largest.
    largest: int = 0
    # Validation documents with a near copy in train.
    validation_documents_near_train: int = 0


def count_near_duplicates(folder: Path, manifest: Manifest, shards: list[Shard]) -> NearDuplicates:
    """Count the near copies among the shards' documents, those of train first.

    Raises ValueError if the temporary folder has too little room.
    """
    settings, total = NearSettings(), sum(shard.num_rows for shard in shards)
    text = TokenText(read_set_spelling(folder, manifest))
    progress = ReadProgress("documents", total)
    with tempfile.TemporaryDirectory(prefix="velocity-") as temporary:
        disk, _ = measure_need(total, settings)
        check_space(Path(temporary), disk, "set TMPDIR to a folder on a larger disk")
        finder = ClusterFinder(Path(temporary), total, settings)
        with finder:
            for shard in shards:
                for signatures in sign_shard(folder, shard, text, settings):
                    finder.add(signatures)
                    progress.add(len(signatures))
        clusters = finder.find()
        progress.finish()
        return count_clusters(folder, shards, clusters, total)


def count_clusters(
    folder: Path, shards: list[Shard], clusters: Clusters, total: int
) -> NearDuplicates:
    """What was found, in numbers."""
    found = NearDuplicates()
    copies = np.zeros(total, np.uint32)
    num_train = sum(shard.num_rows for shard in shards if shard.split == "train")
    first = 0
    for sizes in read_sizes(folder, shards):
        numbers = np.arange(first, first + len(sizes))
        kept = clusters.find_kept(numbers)
        is_copy = kept != numbers
        found.documents += int(is_copy.sum())
        found.tokens += int(sizes[is_copy].sum())
        is_near_train = (numbers >= num_train) & (kept < num_train)
        found.validation_documents_near_train += int(is_near_train.sum())
        np.add.at(copies, kept[is_copy], 1)
        first += len(sizes)
    found.clusters = int(np.count_nonzero(copies))
    found.largest = int(copies.max(initial=0)) + (found.clusters > 0)
    return found


def read_sizes(folder: Path, shards: list[Shard]) -> Iterator[Int64]:
    """The tokens of each document, some documents at a time."""
    for shard in shards:
        for rows in read_rows(folder, shard, ["num_tokens"]):
            yield count_tokens(rows)
