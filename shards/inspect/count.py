"""What a condition would choose of a set, before anything is trained: by split, and by source."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from shards.disk.json_files import Json
from shards.format import SPLITS, Shard
from shards.reader import Shards
from shards.screen.names import escape_line
from shards.sidecar import is_padding
from shards.where.choice import THREADS, mark_documents
from shards.where.condition import Condition, parse_condition

SHOWN_SOURCES = 20


@dataclass
class Amount:
    """Documents and tokens: all of them, and those that are chosen."""

    all_documents: int = 0
    all_tokens: int = 0
    documents: int = 0
    tokens: int = 0

    def add(self, other: "Amount") -> None:
        """Add another amount."""
        self.all_documents += other.all_documents
        self.all_tokens += other.all_tokens
        self.documents += other.documents
        self.tokens += other.tokens

    @property
    def share(self) -> float:
        """The share of the tokens that is chosen."""
        return self.tokens / max(self.all_tokens, 1)

    def describe(self) -> Json:
        """As JSON."""
        return {
            "documents": self.documents,
            "of_documents": self.all_documents,
            "tokens": self.tokens,
            "of_tokens": self.all_tokens,
        }


@dataclass
class Counted:
    """A set's amounts."""

    splits: dict[str, Amount] = field(default_factory=dict)
    # Of both splits together.
    sources: dict[str, Amount] = field(default_factory=dict)


def count_chosen(shards: Shards, where: str) -> Counted:
    """How much of each split and source a condition chooses; ValueError as `choose` raises it."""
    condition = parse_condition(where, "--where")
    counted = Counted({split: Amount() for split in SPLITS})
    with ThreadPoolExecutor(THREADS) as threads:
        everything = shards.manifest.shards
        found = threads.map(lambda shard: count_shard(shards, shard, condition), everything)
        for shard, sources in zip(everything, found, strict=True):
            for name, amount in sources.items():
                counted.splits[shard.split].add(amount)
                counted.sources.setdefault(name, Amount()).add(amount)
    return counted


def count_shard(shards: Shards, shard: Shard, condition: Condition) -> dict[str, Amount]:
    """The amounts of each source in a shard; padding is none."""
    found: dict[str, Amount] = {}
    for every_row, every_mark in mark_documents(shards, shard, condition, ["source_file"]):
        is_document = ~is_padding(every_row)
        rows, marks = every_row.filter(pa.array(is_document)), every_mark[is_document]
        sizes = rows.column("num_tokens")
        chosen = pa.array(marks)
        table = pa.table(
            {
                "source": rows.column("source_file"),
                "all_tokens": sizes,
                "documents": chosen.cast(pa.int64()),
                "tokens": pc.if_else(chosen, sizes, pa.scalar(0, sizes.type)),
            }
        )
        sums = [(name, "sum") for name in ("all_tokens", "documents", "tokens")]
        groups = table.group_by("source").aggregate([("source", "count"), *sums])
        for row in groups.to_pylist():
            amount = Amount(
                row["source_count"], row["all_tokens_sum"], row["documents_sum"], row["tokens_sum"]
            )
            found.setdefault(row["source"], Amount()).add(amount)
    return found


def describe_counted(counted: Counted) -> Iterator[str]:
    """The amounts as a table: splits, then the sources of which most is chosen."""
    sources = sorted(counted.sources.items(), key=lambda entry: (-entry[1].tokens, entry[0]))
    shown, rest = sources[:SHOWN_SOURCES], sources[SHOWN_SOURCES:]
    if rest:
        others = Amount()
        for _, amount in rest:
            others.add(amount)
        shown.append((f"{len(rest):,} more", others))
    for what, amounts in (("split", list(counted.splits.items())), ("source", shown)):
        names = [escape_line(name) for name, _ in amounts]
        width = max(len(name) for name in [what, *names])
        heads = f"{'documents':>15} {'of':>15} {'tokens':>19} {'of':>19} {'share':>8}"
        yield f"{what:<{width}} {heads}"
        for name, (_, amount) in zip(names, amounts, strict=True):
            yield (
                f"{name:<{width}} {amount.documents:>15,} {amount.all_documents:>15,} "
                f"{amount.tokens:>19,} {amount.all_tokens:>19,} {amount.share:>8.2%}"
            )
        if what == "split":
            yield ""


def describe_json(counted: Counted) -> Json:
    """The amounts as JSON."""
    return {
        "splits": {name: amount.describe() for name, amount in counted.splits.items()},
        "sources": {name: amount.describe() for name, amount in counted.sources.items()},
    }
