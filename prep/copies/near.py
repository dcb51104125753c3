"""--dedup near: decides which documents are near copies of earlier ones.

Exact copies are found first; of the others, shards/near/clusters.py finds clusters by the
signatures that the units left. Of each cluster the first document in plan order stays. All that go
are written down in copies-00000.parquet, and that this is so in .prep/near/decided.json, before the
first unit is cut: without some of its documents, clusters would be others.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prep.copies.exact import (
    DUPLICATE,
    Copies,
    NumberedShard,
    PlacedShard,
    find_pairs,
    number_documents,
)
from prep.tokenizer.identity import SetTokenizer
from prep.units.receipts import Receipt, discard_unit
from prep.units.signed import read_signatures
from shards.disk.durable import commit, hash_file, write_file
from shards.disk.folders import make_folder, remove
from shards.disk.json_files import load_json
from shards.disk.layout import COPIES, TOKENIZER, decided_path, near_folder
from shards.disk.shapes import HASH, Each, find_misshape
from shards.format import Int64
from shards.near.clusters import ClusterFinder, Clusters
from shards.near.listing import LISTING_SCHEMA, read_listing, write_listing
from shards.near.signatures import NearSettings
from shards.near.texts import TokenText, sign_shard
from shards.rows import read_rows
from shards.tokenizer import load_spelling

# The reason under which the audit counts near copies.
NEAR_DUPLICATE = "near-duplicate"
DECIDED_SHAPE = {"basis": str, "documents": int, "sha256": HASH, "clusters": Each(int)}


@dataclass(frozen=True)
class Decided:
    """What decided.json says: by which plan, of how many documents, and which listing."""

    basis: str
    documents: int
    sha256: str
    clusters: dict[str, int]


class Documents:
    """All documents in plan order: those of earlier shards, of one set, then those of units."""

    def __init__(
        self,
        out: Path,
        receipts: Sequence[Receipt],
        earlier: Sequence[PlacedShard],
        settings: NearSettings,
        tokenizer: SetTokenizer,
    ) -> None:
        self.out = out
        self.tokenizer = tokenizer
        self.receipts = receipts
        self.earlier = earlier
        self.settings = settings
        self.num_earlier = sum(entry.shard.num_documents for entry in earlier)
        self.firsts = {}
        self.count = self.num_earlier
        for receipt in receipts:
            self.firsts[receipt.unit] = self.count
            self.count += receipt.num_documents

    def order_unit(self, receipt: Receipt) -> Int64:
        """The place of each of a unit's documents among those that it read, as its shards lie."""
        signed = read_signatures(self.out, receipt, self.settings)
        return np.argsort(signed["is_validation"], kind="stable")

    def number_shards(self) -> Iterator[NumberedShard]:
        """All shards, with the numbers of their documents."""
        yield from number_documents(self.earlier)
        for receipt in self.receipts:
            numbers = self.firsts[receipt.unit] + self.order_unit(receipt)
            for shard in receipt.shards:
                yield NumberedShard(PlacedShard(self.out, shard), numbers[: shard.num_documents])
                numbers = numbers[shard.num_documents :]

    def sign(self) -> Iterator[npt.NDArray[np.void]]:
        """The signatures of all documents, in the order of their numbers."""
        if self.earlier:
            marks = self.tokenizer
            spelling = load_spelling(self.out / TOKENIZER, marks.end_of_text, marks.begin_of_text)
            text = TokenText(spelling)
            for placed in self.earlier:
                yield from sign_shard(placed.folder, placed.shard, text, self.settings)
        for receipt in self.receipts:
            yield read_signatures(self.out, receipt, self.settings)


class NearCopies:
    """What --dedup near drops of each unit; `earlier` documents come before all units'."""

    reasons = (DUPLICATE, NEAR_DUPLICATE)

    def __init__(self, documents: Documents, basis: str, folder: Path) -> None:
        self.documents = documents
        path = documents.out / COPIES
        decided = read_decided(documents.out)
        if decided is None or not is_of(decided, basis, documents.count, path):
            refuse_cut(documents)
            decided = decide(documents, basis, folder)
        self.clusters = decided.clusters
        self.files = {COPIES: decided.sha256}
        self.copies = {reason: Copies(documents.count) for reason in self.reasons}
        for rows in read_listing(path, ["number", "reason"]):
            numbers, reasons = rows.column("number").to_numpy(), rows.column("reason")
            for reason, copies in self.copies.items():
                is_it = pc.fill_null(pc.equal(reasons, reason), False)
                copies.add(numbers[is_it.to_numpy(zero_copy_only=False)])

    def find_rows(self, receipt: Receipt) -> dict[str, Int64]:
        """For each reason, which of a unit's documents go, as they lie in its shards."""
        first, count = self.documents.firsts[receipt.unit], receipt.num_documents
        marks = {reason: copies.mark(first, count) for reason, copies in self.copies.items()}
        is_cut = receipt.cut_documents > 0
        if is_cut or not any(mark.any() for mark in marks.values()):
            return {reason: np.empty(0, np.int64) for reason in self.reasons}
        order = self.documents.order_unit(receipt)
        return {reason: np.flatnonzero(mark[order]) for reason, mark in marks.items()}


def read_decided(out: Path) -> Decided | None:
    """What was decided, if anything; ValueError if the file that says so is damaged."""
    path = decided_path(out)
    if not path.exists():
        return None
    raw = load_json(path)
    fault = find_misshape(raw, DECIDED_SHAPE)
    if fault is not None:
        raise ValueError(
            f"{path}: {fault}; it was edited or damaged, so remove it and run the same command "
            "again"
        )
    return Decided(**{key: raw[key] for key in DECIDED_SHAPE})


def is_of(decided: Decided, basis: str, num_documents: int, path: Path) -> bool:
    """Whether this was decided about these documents, and the listing is the one it names."""
    is_same = decided.basis == basis and decided.documents == num_documents
    return is_same and path.is_file() and hash_file(path) == decided.sha256


def refuse_cut(documents: Documents) -> None:
    """ValueError if units were cut already: nothing can be decided about what is left of them.

    They are discarded, so that the same command makes them again.
    """
    cut = [receipt.unit for receipt in documents.receipts if receipt.cut_documents]
    decided_path(documents.out).unlink(missing_ok=True)
    for unit in cut:
        discard_unit(documents.out, unit)
    if cut:
        raise ValueError(
            f"{documents.out / COPIES}: is lost or damaged, and {len(cut):,} units were cut by it; "
            "discarded, to be made again: run the same command again"
        )


def decide(documents: Documents, basis: str, folder: Path) -> Decided:
    """Find all copies and write them down; `folder` is for files that are needed meanwhile."""
    remove(folder)
    make_folder(folder)
    is_copy = Copies(documents.count)
    finder = ClusterFinder(folder, documents.count, documents.settings)
    with finder:
        shards = documents.number_shards()
        for copies, firsts in find_pairs(shards, documents.count, folder / "exact"):
            finder.join(firsts, copies)
            is_copy.add(copies)
        first = 0
        for signatures in documents.sign():
            finder.add(signatures, is_copy.mark(first, len(signatures)))
            first += len(signatures)
    clusters = finder.find()
    listing = Listing(documents, clusters, is_copy)
    write_listing(folder / COPIES, listing.make_tables())
    decided = Decided(basis, documents.count, hash_file(folder / COPIES), listing.count_sizes())
    commit(folder / COPIES, documents.out / COPIES)
    make_folder(near_folder(documents.out))
    write_file(decided_path(documents.out), json.dumps(asdict(decided)) + "\n")
    remove(folder)
    return decided


class Listing:
    """The rows of copies-00000.parquet."""

    def __init__(self, documents: Documents, clusters: Clusters, is_exact: Copies) -> None:
        self.documents = documents
        self.clusters = clusters
        self.is_exact = is_exact
        # How many documents were dropped for each that was kept.
        self.dropped = np.zeros(documents.count, np.uint32)
        for _, numbers in self._number_groups():
            kept = clusters.find_kept(numbers)
            np.add.at(self.dropped, kept[self._is_dropped(numbers, kept)], 1)

    def count_sizes(self) -> dict[str, int]:
        """How many clusters have how many documents, those kept included."""
        sizes, counts = np.unique(self.dropped[self.dropped > 0], return_counts=True)
        return {str(size + 1): int(count) for size, count in zip(sizes, counts, strict=True)}

    def make_tables(self) -> Iterator[pa.Table]:
        """The rows, in the order of their numbers."""
        for shards, numbers in self._number_groups():
            kept = self.clusters.find_kept(numbers)
            is_dropped = self._is_dropped(numbers, kept)
            is_listed = is_dropped | (self.dropped[numbers] > 0)
            if is_listed.any():
                yield self._make_table(shards, numbers[0], is_listed, is_dropped, kept)

    def _number_groups(self) -> Iterator[tuple[list[NumberedShard], Int64]]:
        """The shards of each unit, or one earlier shard, and the numbers there, ascending."""
        for placed in number_documents(self.documents.earlier):
            yield [placed], placed.numbers
        units = iter(self.documents.number_shards())
        for _ in self.documents.earlier:
            next(units)
        for receipt in self.documents.receipts:
            first = self.documents.firsts[receipt.unit]
            numbers = np.arange(first, first + receipt.num_documents)
            if len(numbers):
                yield [next(units) for _ in receipt.shards], numbers

    def _is_dropped(self, numbers: Int64, kept: Int64) -> npt.NDArray[np.bool_]:
        """Which documents go; those of earlier shards never do."""
        is_dropped: npt.NDArray[np.bool_] = kept != numbers
        return is_dropped & (numbers >= self.documents.num_earlier)

    def _make_table(
        self,
        shards: list[NumberedShard],
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
        kept, is_dropped = kept[is_listed], is_dropped[is_listed]
        is_exact = self.is_exact.mark(first, len(is_listed))[is_listed]
        similarity = self.clusters.estimate(numbers, kept)
        similarity[is_exact | ~is_dropped] = 1
        reasons = np.where(is_exact, DUPLICATE, NEAR_DUPLICATE)
        columns = {
            "number": pa.array(numbers.astype(np.uint64)),
            "kept": pa.array(np.where(is_dropped, kept, numbers).astype(np.uint64)),
            "reason": pa.array(reasons, pa.string(), mask=~is_dropped),
            "similarity": pa.array(similarity),
        }
        columns |= {name: table.column(name) for name in LISTING_SCHEMA.names[4:]}
        return pa.table(columns, schema=LISTING_SCHEMA)
