"""--dedup exact: of documents with the same text, the first in plan order stays.

When all units are done, the doc_hash of every document (16 bytes of the sha256 of its text) goes
to one of up to 512 files by its first bits, with the document's number. Each file is sorted by
itself, which gives the numbers of the copies; then each unit that holds any is written again
without them, and its receipt with it. Nothing depends on who did the units or was killed.

    disk      24 bytes a document, beside one unit that is written again on each core
    memory    1 bit a document, and about 0.4 GB

A unit's second writing is committed in .prep/dedup: its files lie there whole, then a receipt
beside them says so, and from there on they only get their names. A copy that is gone is no copy
the next time, so a killed command begins again and comes to the same end.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from prep.units.receipts import (
    Audit,
    Receipt,
    parse_receipt,
    receipt_path,
    temporary_folder,
    work_folder,
)
from shards.disk.durable import commit, naming, sync_folder, write_file
from shards.edit.rewrite import BLANK_HASH, Rewriter, Rewritten, make_rewriter
from shards.format import Shard, load_json

Int64 = npt.NDArray[np.int64]

MAX_FILES = 512
# Hashes that are sorted at a time, and so many that a file holds at most, while 512 are enough.
SORTED_HASHES = 1 << 21
# Hashes that are dealt to the files at a time.
DEALT_HASHES = 1 << 20
ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<u8")])
Entries = np.ndarray[tuple[int], np.dtype[np.void]]
COLUMN = "doc_hash"
# The audit's reason.
DUPLICATE = "duplicate"


@dataclass(frozen=True)
class PlacedShard:
    """A shard and the folder that it lies in."""

    folder: Path
    shard: Shard


class Copies:
    """One bit for each document, in order: whether it is a copy of one before it."""

    def __init__(self, num_documents: int) -> None:
        self.bits = np.zeros(-(-num_documents // 8), np.uint8)

    def add(self, numbers: npt.NDArray[np.uint64]) -> None:
        """Mark documents."""
        bits = np.left_shift(1, (numbers & np.uint64(7)).astype(np.uint8), dtype=np.uint8)
        np.bitwise_or.at(self.bits, (numbers >> np.uint64(3)).astype(np.int64), bits)

    def among(self, first: int, count: int) -> Int64:
        """The marked ones of `count` documents from number `first` on, counted from there."""
        here = self.bits[first // 8 : -(-(first + count) // 8)]
        marked = np.unpackbits(here, bitorder="little")[first % 8 :][:count]
        return np.flatnonzero(marked).astype(np.int64)


def find_copies(shards: Sequence[PlacedShard], temporary: Path) -> Copies:
    """Which documents of the shards, in this order, have the text of one before them."""
    num_documents = sum(placed.shard.num_documents for placed in shards)
    num_files = min(1 << (num_documents // SORTED_HASHES).bit_length(), MAX_FILES)
    paths = [temporary / f"hashes-{place:03d}" for place in range(num_files)]
    with naming(temporary):
        deal_hashes(read_hashes(shards), paths)
    copies = Copies(num_documents)
    for path in paths:
        for numbers in find_repeated(path):
            copies.add(numbers)
        path.unlink()
    return copies


def read_hashes(shards: Iterable[PlacedShard]) -> Iterator[Entries]:
    """The hash and number of each document; documents that were removed have none."""
    number = 0
    for placed in shards:
        with pq.ParquetFile(placed.folder / placed.shard.sidecar) as file:
            for batch in file.iter_batches(columns=[COLUMN]):
                column = batch.column(COLUMN)
                halves = np.frombuffer(column.buffers()[1], "<u8")[2 * column.offset :]
                entries = np.empty(len(column), ENTRY)
                entries["high"] = halves[0 : 2 * len(column) : 2]
                entries["low"] = halves[1 : 2 * len(column) : 2]
                entries["number"] = np.arange(number, number + len(column), dtype=np.uint64)
                number += len(column)
                blank_high, blank_low = np.frombuffer(BLANK_HASH, "<u8")
                yield entries[(entries["high"] != blank_high) | (entries["low"] != blank_low)]


def deal_hashes(batches: Iterable[Entries], paths: Sequence[Path]) -> None:
    """Append each entry to the file that its hash belongs to; a file's numbers ascend."""
    files = [open(path, "wb", buffering=1 << 17) for path in paths]  # noqa: SIM115
    try:
        waiting: list[Entries] = []
        for batch in batches:
            waiting.append(batch)
            if sum(map(len, waiting)) >= DEALT_HASHES:
                deal(np.concatenate(waiting), files)
                waiting = []
        if waiting:
            deal(np.concatenate(waiting), files)
    finally:
        for file in files:
            file.close()


def deal(entries: Entries, files: Sequence[BinaryIO]) -> None:
    """Append entries to the files, chosen by the first bits of their hashes."""
    num_bits = len(files).bit_length() - 1
    places = (entries["high"] >> np.uint64(63 - num_bits)) >> np.uint64(1)
    entries = entries[np.argsort(places, kind="stable")]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(places.astype(np.int64)))]).tolist()
    for file, start, stop in zip(files, bounds, bounds[1:], strict=False):
        file.write(entries[start:stop].tobytes())


def find_repeated(path: Path) -> Iterator[npt.NDArray[np.uint64]]:
    """The numbers of the documents whose hash stands before them in the file, some at a time."""
    distinct = np.empty(0, ENTRY)
    with open(path, "rb") as file:
        while len(block := np.fromfile(file, ENTRY, SORTED_HASHES)):
            entries = np.concatenate([distinct, block])
            is_copy = mark_copies(entries)
            yield entries["number"][is_copy]
            distinct = entries[~is_copy]


def mark_copies(entries: Entries) -> npt.NDArray[np.bool_]:
    """Which entries have the hash of one with a lower number."""
    high = entries["high"].copy()
    order = np.argsort(high)
    is_same = high[order[1:]] == high[order[:-1]]
    # Nearly all hashes differ in their first half; only the others are sorted whole.
    is_near = np.zeros(len(entries), np.bool_)
    is_near[order[1:][is_same]] = True
    is_near[order[:-1][is_same]] = True
    near = np.flatnonzero(is_near)
    chosen = entries[near]
    near = near[np.lexsort((chosen["number"], chosen["low"], chosen["high"]))]
    chosen = entries[near]
    is_equal = (chosen["high"][1:] == chosen["high"][:-1]) & (
        chosen["low"][1:] == chosen["low"][:-1]
    )
    is_copy = np.zeros(len(entries), np.bool_)
    is_copy[near[1:][is_equal]] = True
    return is_copy


def drop_copies(
    out: Path,
    receipts: Sequence[Receipt],
    end_of_text: int,
    earlier: Sequence[PlacedShard] = (),
    workers: int = 1,
) -> list[Receipt]:
    """Write the units that hold copies again without them; all receipts, in plan order.

    The documents of `earlier`, shards of another folder, come before all others. Raises ValueError
    or OSError where a shard is damaged or the disk is full; the same call then goes on.
    """
    placed = [PlacedShard(out, shard) for receipt in receipts for shard in receipt.shards]
    temporary = temporary_folder(out) / "hashes"
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    copies = find_copies([*earlier, *placed], temporary)
    temporary.rmdir()
    rewriter = make_rewriter(out, dedup_folder(out), end_of_text, keeps_places=False)

    def drop(receipt: Receipt, first: int) -> Receipt:
        return drop_from_unit(rewriter, receipt, copies, first)

    firsts = [sum(entry.shard.num_documents for entry in earlier)]
    for receipt in receipts:
        firsts.append(firsts[-1] + sum(shard.num_documents for shard in receipt.shards))
    try:
        with ThreadPoolExecutor(workers) as threads:
            following = list(threads.map(drop, receipts, firsts[:-1]))
    except OSError as error:
        raise ValueError(
            f"{out}: a unit could not be written again "
            f"({os.strerror(error.errno) if error.errno else error}); "
            "free some disk and run the same command again; what is committed stays"
        ) from error
    finish_units(out)
    return following


def drop_from_unit(rewriter: Rewriter, receipt: Receipt, copies: Copies, first: int) -> Receipt:
    """Write a unit's shards again without their copies; `first` is its first document's number."""
    rows: dict[Shard, Int64] = {}
    for shard in receipt.shards:
        rows[shard] = copies.among(first, shard.num_documents)
        first += shard.num_documents
    if not any(map(len, rows.values())):
        return receipt
    out = rewriter.folder
    folder = dedup_folder(out) / f"{receipt.unit:05d}"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    rewriter = replace(rewriter, temporary=folder)
    rewritten = {
        shard: rewriter.rewrite(shard, here, shard.name, receipt.sidecar_sha256[shard.sidecar])
        for shard, here in rows.items()
        if len(here)
    }
    sync_folder(folder)
    following = describe_unit(receipt, rewritten)
    write_file(folder.with_suffix(".json"), json.dumps(asdict(following), indent=1) + "\n")
    finish_unit(out, receipt.unit)
    return following


def describe_unit(receipt: Receipt, rewritten: dict[Shard, Rewritten]) -> Receipt:
    """The receipt of a unit whose copies are cut: what they took of the budget stays taken."""
    shards, hashes = [], dict(receipt.sidecar_sha256)
    audit = Audit(**asdict(receipt.audit))
    for shard in receipt.shards:
        entry = rewritten.get(shard)
        if entry is None:
            shards.append(shard)
            continue
        del hashes[shard.sidecar]
        if entry.written:
            shards.append(entry.written.shard)
            hashes[shard.sidecar] = entry.written.sidecar_sha256
        is_train = shard.split == "train"
        audit.train -= entry.num_documents * is_train
        audit.validation -= entry.num_documents * (not is_train)
        audit.text_bytes -= entry.text_bytes
        audit.dropped[DUPLICATE] = audit.dropped.get(DUPLICATE, 0) + entry.num_documents
    return replace(
        receipt,
        shards=tuple(shards),
        sidecar_sha256=hashes,
        audit=audit,
        cut_documents=receipt.cut_documents + sum(e.num_documents for e in rewritten.values()),
        cut_tokens=receipt.cut_tokens + sum(e.num_tokens for e in rewritten.values()),
    )


def finish_unit(out: Path, unit: int) -> None:
    """Give a rewritten unit's files their names, and the unit its receipt; can be repeated."""
    folder = dedup_folder(out) / f"{unit:05d}"
    path = folder.with_suffix(".json")
    before = parse_receipt(load_json(receipt_path(out, unit)))
    after = parse_receipt(load_json(path))
    for rewritten in sorted(folder.iterdir()):
        os.replace(rewritten, out / rewritten.name)
    for name in {shard.name for shard in before.shards} - {shard.name for shard in after.shards}:
        (out / name).unlink(missing_ok=True)
        (out / Shard("", name, 0, 0, "").sidecar).unlink(missing_ok=True)
    sync_folder(out)
    commit(path, receipt_path(out, unit))
    folder.rmdir()


def finish_units(out: Path) -> None:
    """Bring what a kill left to an end: units that were written again whole; others are cleared."""
    folder = dedup_folder(out)
    if not folder.exists():
        return
    for path in sorted(folder.glob("*.json")):
        finish_unit(out, int(path.stem))
    shutil.rmtree(folder)


def dedup_folder(out: Path) -> Path:
    """Where units lie while they are written again."""
    return work_folder(out) / "dedup"
