"""What a set is made of: documents, tokens and text by source, lengths, frequent tokens, copies.

Each shard is read once, in blocks, so memory does not grow with the set
(shards/inspect/duplicates.py says what counting copies takes).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise

import numpy as np

from shards.disk.json_files import Json
from shards.files import ShardFile
from shards.format import SPLITS, Int64, Shard, check_split
from shards.inspect.duplicates import Duplicates, count_duplicates
from shards.inspect.lengths import PERCENTILES, LengthCounter, Lengths
from shards.inspect.near import NearDuplicates, count_near_duplicates
from shards.reader import Shards
from shards.rows import read_rows
from shards.screen.lines import ReadProgress
from shards.screen.names import advise_verify
from shards.sidecar import NO_SOURCE, count_tokens, is_blank
from shards.tokenizer import Spelling, read_set_spelling
from shards.widths import Tokens

# The source name of documents that `velocity shards remove` left only the places of.
REMOVED = "(removed)"
# That of what fills up packed rows.
PADDING = "(padding)"
# Tokens counted at a time: as 64-bit numbers they still fit in a processor's cache.
BLOCK_TOKENS = 1 << 20


@dataclass
class Amount:
    """An amount of data: `text_bytes` is what its tokens decode to, in UTF-8.

    `tokens` include those that end documents.
    """

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0

    @property
    def bytes_per_token(self) -> float:
        """The bytes of text that a token stands for, on average."""
        return self.text_bytes / max(self.tokens, 1)

    def add(self, other: "Amount") -> None:
        """Add another amount to this one."""
        self.documents += other.documents
        self.tokens += other.tokens
        self.text_bytes += other.text_bytes


@dataclass(frozen=True)
class Stats:
    """What was counted in the chosen splits of a set."""

    dataset_id: str
    splits: dict[str, Amount]
    sources: dict[str, Amount]
    lengths: Lengths
    # How often each id occurs, and what it stands for.
    token_counts: Int64
    spelling: Spelling
    duplicates: Duplicates | None
    near_duplicates: NearDuplicates | None

    @property
    def total(self) -> Amount:
        """All splits together."""
        total = Amount()
        for amount in self.splits.values():
            total.add(amount)
        return total

    def frequent_tokens(self, count: int) -> list[tuple[int, int]]:
        """The ids that occur most often, and how often."""
        order = np.argsort(-self.token_counts, kind="stable")[:count]
        return [(i, n) for i in order.tolist() if (n := int(self.token_counts[i]))]

    def largest_sources(self) -> list[tuple[str, Amount]]:
        """The sources, those of most tokens first."""
        return sorted(self.sources.items(), key=lambda entry: (-entry[1].tokens, entry[0]))


def measure_set(
    shards: Shards,
    split: str | None = None,
    duplicates: bool = True,
    near_duplicates: bool = False,
) -> Stats:
    """Read the sidecars and tokens of a set, or of one split, and count.

    Raises ValueError naming the file where the set is not what its manifest says.
    """
    if split is not None:
        check_split(split)
    manifest = shards.manifest
    chosen = [shard for shard in manifest.shards if split in (None, shard.split)]
    spelling = read_set_spelling(shards.folder, manifest)
    counter = SetCounter(shards, spelling, sum(shard.num_tokens for shard in chosen))
    for shard in chosen:
        counter.count_shard(shard)
    counter.progress.finish()
    return Stats(
        manifest.dataset_id,
        {name: counter.splits[name] for name in SPLITS if split in (None, name)},
        counter.sources,
        counter.lengths.finish(),
        counter.token_counts,
        spelling,
        count_duplicates(shards.folder, chosen) if duplicates else None,
        count_near_duplicates(shards.folder, manifest, chosen) if near_duplicates else None,
    )


@dataclass
class SetCounter:
    """Counts, shard after shard."""

    shards: Shards
    spelling: Spelling
    num_tokens: int
    splits: dict[str, Amount] = field(default_factory=lambda: {s: Amount() for s in SPLITS})
    sources: dict[str, Amount] = field(default_factory=dict)
    lengths: LengthCounter = field(default_factory=LengthCounter)

    def __post_init__(self) -> None:
        self.token_counts: Int64 = np.zeros(len(self.spelling.inner), np.int64)
        self.progress = ReadProgress("tokens", self.num_tokens)

    def count_shard(self, shard: Shard) -> None:
        """Count a shard's documents and tokens, one stretch of a single source at a time."""
        start = 0
        with ShardFile(self.shards.folder, shard) as file:
            for source, sizes in read_stretches(self.shards, shard):
                tokens = file.read_tokens(start, int(sizes.sum()))
                counts = self._count_tokens(shard, tokens)
                num_bytes = self.spelling.count_bytes(tokens, sizes, counts)
                num_documents = 0 if source == PADDING else len(sizes)
                amount = Amount(num_documents, len(tokens), num_bytes)
                if source not in (REMOVED, PADDING):
                    self.lengths.add(sizes)
                self.sources.setdefault(source, Amount()).add(amount)
                self.splits[shard.split].add(amount)
                start += len(tokens)

    def _count_tokens(self, shard: Shard, tokens: Tokens) -> Int64:
        """How often each id occurs in some of a shard's tokens, a block at a time."""
        num_ids = len(self.token_counts)
        counts: Int64 = np.zeros(num_ids, np.int64)
        for place in range(0, len(tokens), BLOCK_TOKENS):
            block = tokens[place : place + BLOCK_TOKENS]
            largest = int(block.max())
            if largest >= num_ids:
                raise ValueError(
                    f"{self.shards.folder / shard.name}: holds the id {largest}; the tokenizer "
                    f"has {num_ids:,}; {advise_verify(self.shards.folder)}"
                )
            counts += np.bincount(block, minlength=num_ids)
            self.progress.add(len(block))
        self.token_counts += counts
        return counts


def read_stretches(shards: Shards, shard: Shard) -> Iterator[tuple[str, Int64]]:
    """A shard's documents in order, as stretches with the same source: its name, their sizes."""
    columns = ["num_tokens", "source_file", "doc_hash"]
    for batch in read_rows(shards.folder, shard, columns, read_dictionary=["source_file"]):
        sizes = count_tokens(batch)
        column = batch.column("source_file")
        sources = column.dictionary.to_pylist()
        names = [*(PADDING if name == NO_SOURCE else name for name in sources), REMOVED]
        codes = column.indices.to_numpy()
        is_removed = is_blank(batch.column("doc_hash"))
        if NO_SOURCE in sources:
            is_removed &= codes != sources.index(NO_SOURCE)
        codes = np.where(is_removed, len(names) - 1, codes)
        bounds = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
        for first, last in pairwise(bounds):
            if first < last:
                yield names[codes[first]], sizes[first:last]


def describe_json(stats: Stats, top: int) -> Json:
    """The counts as JSON, with `top` frequent tokens and all sources."""
    total = stats.total
    lengths = stats.lengths
    percentiles = {f"{percent:g}": lengths.percentile(percent) for percent in PERCENTILES}
    return {
        "dataset_id": stats.dataset_id,
        "splits": {name: describe_amount(amount) for name, amount in stats.splits.items()},
        "total": describe_amount(total),
        "lengths": {
            "min": lengths.percentile(0),
            "mean": lengths.num_tokens / max(lengths.num_documents, 1),
            "max": lengths.percentile(100),
            "percentiles": percentiles,
            "histogram": [asdict(part) for part in lengths.histogram()],
        },
        "sources": [
            {"name": name, **describe_amount(amount)} for name, amount in stats.largest_sources()
        ],
        "ids_used": int((stats.token_counts > 0).sum()),
        "ids": len(stats.token_counts),
        "frequent_tokens": [
            {"id": i, "text": stats.spelling.show(i), "count": count, "share": count / total.tokens}
            for i, count in stats.frequent_tokens(top)
        ],
        "duplicates": asdict(stats.duplicates) if stats.duplicates else None,
        "near_duplicates": asdict(stats.near_duplicates) if stats.near_duplicates else None,
    }


def describe_amount(amount: Amount) -> Json:
    """An amount as JSON, with its bytes per token."""
    return {**asdict(amount), "bytes_per_token": amount.bytes_per_token}
