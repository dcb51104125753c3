"""The rows of copies-00000.parquet: which document was kept for each that is dropped."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prep.copies.exact import DUPLICATE, Copies, NumberedShard, number_documents
from prep.copies.order import PlanOrder
from shards.format import Int64
from shards.near.clusters import Clusters
from shards.near.listing import LISTING_SCHEMA
from shards.rows import read_rows

# The reason under which the audit counts near copies.
NEAR_DUPLICATE = "near-duplicate"


class Listing:
    """The rows of copies-00000.parquet."""

    def __init__(self, documents: PlanOrder, clusters: Clusters, is_exact: Copies) -> None:
        self.documents = documents
        self.clusters = clusters
        self.is_exact = is_exact
        # How many documents were dropped for each that was kept.
        self.dropped = np.zeros(documents.count, np.uint32)
        for numbers, _ in self._group():
            kept = clusters.find_kept(numbers)
            np.add.at(self.dropped, kept[self._is_dropped(numbers, kept)], 1)

    def count_sizes(self) -> dict[str, int]:
        """How many clusters have how many documents, those kept included."""
        sizes, counts = np.unique(self.dropped[self.dropped > 0], return_counts=True)
        return {str(size + 1): int(count) for size, count in zip(sizes, counts, strict=True)}

    def make_tables(self) -> Iterator[pa.Table]:
        """The rows, in the order of their numbers."""
        for numbers, number_shards in self._group():
            kept = self.clusters.find_kept(numbers)
            is_dropped = self._is_dropped(numbers, kept)
            is_listed = is_dropped | (self.dropped[numbers] > 0)
            if is_listed.any():
                yield self._make_table(number_shards(), numbers[0], is_listed, is_dropped, kept)

    def _group(self) -> Iterator[tuple[Int64, Callable[[], Iterable[NumberedShard]]]]:
        """The numbers of each unit's documents, or an earlier shard's, ascending; and its shards.

        Which number a document of a shard has is read only where it is asked for.
        """
        for placed in number_documents(self.documents.earlier):
            yield placed.numbers, partial(list, [placed])
        for receipt in self.documents.receipts:
            first = self.documents.firsts[receipt.unit]
            numbers = np.arange(first, first + receipt.num_documents)
            if len(numbers):
                yield numbers, partial(self.documents.number_unit, receipt)

    def _is_dropped(self, numbers: Int64, kept: Int64) -> npt.NDArray[np.bool_]:
        """Which documents go; those of earlier shards never do."""
        is_dropped: npt.NDArray[np.bool_] = kept != numbers
        return is_dropped & (numbers >= self.documents.num_earlier)

    def _make_table(
        self,
        shards: Iterable[NumberedShard],
        first: int,
        is_listed: npt.NDArray[np.bool_],
        is_dropped: npt.NDArray[np.bool_],
        kept: Int64,
    ) -> pa.Table:
        found = []
        for placed, numbers in shards:
            names = LISTING_SCHEMA.names[4:]
            for rows in read_rows(placed.folder, placed.shard, names):
                here, numbers = numbers[: len(rows)], numbers[len(rows) :]
                wanted = is_listed[here - first]
                table = pa.Table.from_batches([rows]).filter(pa.array(wanted))
                found.append(table.add_column(0, "number", pa.array(here[wanted])))
        table = pa.concat_tables(found).sort_by("number")
        numbers = np.flatnonzero(is_listed) + first
        is_dropped = is_dropped[is_listed]
        kept = np.where(is_dropped, kept[is_listed], numbers)
        is_exact = self.is_exact.mark(first, len(is_listed))[is_listed]
        reasons = np.where(is_exact, DUPLICATE, NEAR_DUPLICATE)
        columns = {
            "number": pa.array(numbers.astype(np.uint64)),
            "kept": pa.array(kept.astype(np.uint64)),
            "reason": pa.array(reasons, pa.string(), mask=~is_dropped),
            "similarity": pa.array(self.clusters.estimate(numbers, kept)),
        }
        columns |= {name: table.column(name) for name in LISTING_SCHEMA.names[4:]}
        return pa.table(columns, schema=LISTING_SCHEMA)
