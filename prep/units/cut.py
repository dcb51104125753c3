"""--dedup exact: rewrites each unit that holds copies without them, and its receipt.

A rewritten unit is committed in .prep/dedup: first its files are there, whole, then a receipt
beside them says so, and from then on they only need renaming. A copy that is gone is not found the
next time, so a killed command starts over and ends with the same set.
"""

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from prep.text.copies import Copies, PlacedShard, find_copies
from prep.units.receipts import Audit, Receipt, parse_receipt
from shards.disk.durable import commit, sync_folder, write_file
from shards.disk.json_files import load_json
from shards.disk.layout import dedup_folder, receipt_path, temporary_folder
from shards.edit.rewrite import Rewriter, Rewritten, make_rewriter
from shards.format import Int64, Shard

# The reason under which the audit counts copies.
DUPLICATE = "duplicate"


def drop_copies(
    out: Path,
    receipts: Sequence[Receipt],
    end_of_text: int,
    earlier: Sequence[PlacedShard] = (),
    workers: int = 1,
) -> list[Receipt]:
    """Rewrite the units that hold copies without them; returns all receipts, in plan order.

    The documents of `earlier`, shards of another folder, come before all others. Raises ValueError
    or OSError if a shard is damaged or the disk is full; the same call then resumes.
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
            f"{out}: a unit could not be rewritten "
            f"({os.strerror(error.errno) if error.errno else error}); "
            "free some disk and run the same command again; what is committed stays"
        ) from error
    finish_units(out)
    return following


def drop_from_unit(rewriter: Rewriter, receipt: Receipt, copies: Copies, first: int) -> Receipt:
    """Rewrite a unit's shards without their copies; `first` is its first document's number."""
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
    """The receipt of a unit whose copies are cut: the budget that they used stays used."""
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
    """Give a rewritten unit's files their names, and the unit its receipt; may be repeated."""
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
    """Complete after a kill the units that were rewritten whole, and clear the others."""
    folder = dedup_folder(out)
    if not folder.exists():
        return
    for path in sorted(folder.glob("*.json")):
        finish_unit(out, int(path.stem))
    shutil.rmtree(folder)
