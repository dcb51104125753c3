"""--dedup: rewrites each unit that holds copies without them, and its receipt.

A rewritten unit is committed in .prep/dedup: first its files are there, whole, then a receipt
beside them says so, and from then on they only need renaming. An exact copy that is gone is not
found the next time, and which documents are near copies is written down before the first is cut
(prep/copies/near.py), so a killed command starts over and ends with the same set.
"""

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from prep.tokenizer.identity import SetTokenizer
from prep.units.receipts import Audit, Receipt, load_receipt
from shards.disk.durable import commit, hash_file, sync_folder, write_file
from shards.disk.folders import make_folder, remove
from shards.disk.layout import TOKENIZER, dedup_folder, receipt_path
from shards.edit.rewrite import Rewriter, Rewritten, subtract_bytes
from shards.format import Int64, Shard
from shards.tokenizer import load_spelling


class Chosen(Protocol):
    """The documents that go, and why."""

    def find_rows(self, receipt: Receipt) -> dict[str, Int64]:
        """For each reason, which of a unit's documents go, as they lie in its shards."""


def drop_copies(
    out: Path,
    receipts: Sequence[Receipt],
    tokenizer: SetTokenizer,
    chosen: Chosen,
    workers: int = 1,
    row_tokens: int | None = None,
) -> list[Receipt]:
    """Rewrite the units that hold copies without them; returns all receipts, in plan order.

    With `row_tokens`, what stays is packed, and so every unit is rewritten once.

    Raises ValueError or OSError if a shard is damaged or the disk is full; the same call then
    resumes.
    """
    spelling = load_spelling(out / TOKENIZER, tokenizer.end_of_text, tokenizer.begin_of_text)
    rewriter = Rewriter(out, dedup_folder(out), spelling, False, row_tokens)

    def drop(receipt: Receipt) -> Receipt:
        return drop_from_unit(rewriter, receipt, chosen.find_rows(receipt))

    try:
        with ThreadPoolExecutor(workers) as threads:
            following = list(threads.map(drop, receipts))
    except OSError as error:
        raise ValueError(
            f"{out}: a unit could not be rewritten "
            f"({os.strerror(error.errno) if error.errno else error}); "
            "free some disk and run the same command again; what is committed stays"
        ) from error
    finish_units(out)
    return following


def drop_from_unit(rewriter: Rewriter, receipt: Receipt, reasons: dict[str, Int64]) -> Receipt:
    """Rewrite a unit's shards without the documents that go; `reasons` has some for each reason."""
    going = np.sort(np.concatenate(list(reasons.values())))
    is_packed = rewriter.row_tokens is None or receipt.is_packed
    if not len(going) and is_packed:
        return receipt
    rows: dict[Shard, Int64] = {}
    first = 0
    for shard in receipt.shards:
        low, high = np.searchsorted(going, (first, first + shard.num_rows))
        rows[shard] = going[low:high] - first
        first += shard.num_rows
    out = rewriter.folder
    folder = dedup_folder(out) / f"{receipt.unit:05d}"
    remove(folder)
    make_folder(folder)
    rewriter = replace(rewriter, temporary=folder)
    rewritten = {
        shard: rewriter.rewrite(shard, here, shard.name, receipt.sidecar_sha256[shard.sidecar])
        for shard, here in rows.items()
        if len(here) or not is_packed
    }
    sync_folder(folder)
    following = describe_unit(receipt, rewritten)
    for reason, numbers in reasons.items():
        dropped = following.audit.dropped
        dropped[reason] = dropped.get(reason, 0) + len(numbers)
    write_file(folder.with_suffix(".json"), json.dumps(asdict(following), indent=1) + "\n")
    place_unit(out, receipt, following)
    return following


def describe_unit(receipt: Receipt, rewritten: dict[Shard, Rewritten]) -> Receipt:
    """The receipt of a unit whose copies are cut, but for the reasons of its audit.

    The budget that they used stays used.
    """
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
        audit.text_bytes = subtract_bytes(audit.text_bytes, entry)
    return replace(
        receipt,
        shards=tuple(shards),
        sidecar_sha256=hashes,
        audit=audit,
        cut_documents=receipt.cut_documents + sum(e.num_documents for e in rewritten.values()),
        cut_tokens=receipt.cut_tokens + sum(e.num_tokens for e in rewritten.values()),
    )


def place_unit(out: Path, before: Receipt, after: Receipt) -> None:
    """Give a rewritten unit's files their names, and the unit its receipt; may be repeated."""
    folder = dedup_folder(out) / f"{after.unit:05d}"
    for name in list_files(after):
        if (folder / name).exists():
            os.replace(folder / name, out / name)
    for name in list_files(before).keys() - list_files(after).keys():
        (out / name).unlink(missing_ok=True)
    sync_folder(out)
    commit(folder.with_suffix(".json"), receipt_path(out, after.unit))
    remove(folder)


def check_rewritten(out: Path, before: Receipt, after: Receipt) -> None:
    """ValueError if a unit's new receipt is not the old one's without copies, or files are lost."""
    folder = dedup_folder(out) / f"{after.unit:05d}"
    files = list_files(after)
    fault = None
    if after.plan_id != before.plan_id or not files.keys() <= list_files(before).keys():
        fault = f"is not what is left of {receipt_path(out, after.unit)}"
    for name, sha256 in files.items():
        places = [place / name for place in (folder, out) if (place / name).is_file()]
        if not places or hash_file(places[0]) != sha256:
            fault = f"{(places or [out / name])[0]} is not the file that it names"
    if fault is not None:
        raise ValueError(
            f"{folder.with_suffix('.json')}: {fault}; it was edited or damaged, and nothing was "
            f"changed; remove {receipt_path(out, after.unit)} and {folder.parent}, and run the "
            "same command again, which makes the unit again"
        )


def list_files(receipt: Receipt) -> dict[str, str]:
    """The sha256 of each of a unit's files, by name."""
    files = {shard.name: shard.sha256 for shard in receipt.shards}
    return files | {s.sidecar: receipt.sidecar_sha256[s.sidecar] for s in receipt.shards}


def finish_units(out: Path) -> None:
    """Complete after a kill the units that were rewritten whole, and clear the others."""
    folder = dedup_folder(out)
    for path in sorted(folder.glob("*.json")):
        if not re.fullmatch(r"\d{5,}", path.stem):
            raise ValueError(f"{path}: is no unit's; remove it and run the same command again")
        unit = int(path.stem)
        before, after = load_receipt(receipt_path(out, unit), unit), load_receipt(path, unit)
        check_rewritten(out, before, after)
        place_unit(out, before, after)
    remove(folder)
