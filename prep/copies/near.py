"""--dedup near: decides which documents are near copies of earlier ones.

Exact copies are found first; of the others, shards/near/clusters.py finds clusters by the
signatures that the units left. Of each cluster the first document in plan order stays. All that go
are written down in copies-00000.parquet, and that this is so in .prep/near/decided.json, before the
first unit is cut: without some of its documents, clusters would be others.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from prep.copies.exact import DUPLICATE, Copies, find_exact_pairs
from prep.copies.listing import NEAR_DUPLICATE, Listing
from prep.copies.order import PlanOrder
from prep.units.receipts import Receipt, discard_unit
from shards.disk.durable import commit, hash_file, write_file
from shards.disk.folders import make_folder, remove
from shards.disk.json_files import load_json
from shards.disk.layout import COPIES, decided_path, near_folder
from shards.disk.shapes import HASH, Each, find_misshape
from shards.format import Int64
from shards.near.clusters import ClusterFinder
from shards.near.listing import read_listing, write_listing

DECIDED_SHAPE = {"basis": str, "documents": int, "sha256": HASH, "clusters": Each(int)}


@dataclass(frozen=True)
class Decided:
    """What decided.json says: by which plan, of how many documents, and which listing."""

    basis: str
    documents: int
    sha256: str
    clusters: dict[str, int]


class NearCopies:
    """What --dedup near drops of each unit; `earlier` documents come before all units'."""

    reasons = (DUPLICATE, NEAR_DUPLICATE)

    def __init__(self, documents: PlanOrder, basis: str, folder: Path) -> None:
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


def refuse_cut(documents: PlanOrder) -> None:
    """ValueError if units were cut already: nothing can be decided about what is left of them.

    They are discarded, so that the same command makes them again.
    """
    cut = [r.unit for r in documents.receipts if r.cut_documents or r.is_packed]
    decided_path(documents.out).unlink(missing_ok=True)
    for unit in cut:
        discard_unit(documents.out, unit)
    if cut:
        raise ValueError(
            f"{documents.out / COPIES}: is lost or damaged, and {len(cut):,} units were cut by it; "
            "discarded, to be made again: run the same command again"
        )


def decide(documents: PlanOrder, basis: str, folder: Path) -> Decided:
    """Find all copies and write them down; `folder` is for files that are needed meanwhile."""
    remove(folder)
    make_folder(folder)
    is_copy = Copies(documents.count)
    finder = ClusterFinder(folder, documents.count, documents.settings)
    # Before the finder's files are open: a process may not have both at one time.
    shards = documents.number_shards()
    for copies, firsts in find_exact_pairs(shards, documents.count, folder / "exact"):
        finder.join(firsts, copies)
        is_copy.add(copies)
    with finder:
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
