"""What a finished unit leaves behind: its receipt, and the counts of its audit."""

import json
import re
import secrets
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from prep.readers.documents import BadDocument
from prep.units.budget import Budget
from shards.disk.durable import commit, sync_folder, write_file
from shards.disk.json_files import Json, load_json
from shards.disk.layout import (
    decided_path,
    near_path,
    pending_path,
    receipt_path,
    temporary_folder,
)
from shards.disk.shapes import HASH, OrNull, find_misshape
from shards.format import SPLITS, Shard
from shards.schema import LOSS_TOKENS, PACKING_COUNTS
from shards.widths import TOKEN_BYTES

SHARD_SHAPE = {"split": str, "name": str, "num_tokens": int, "num_documents": int, "sha256": str}
WIDTH = "token_bytes"  # Receipts of earlier releases have none: 2.
# Those of earlier releases have none of these either: no shard is packed.
PACKED = ("row_tokens", *PACKING_COUNTS, LOSS_TOKENS)
AUDIT_SHAPE = {
    "documents_read": int,
    "train": int,
    "validation": int,
    "dropped": dict,
    "texts_repaired?": int,
    "text_bytes": int,
    "rows_by_source": dict,
    "clusters?": dict,
    "copies?": dict,
    "kinds?": dict,
    "longest?": int,
}
RECEIPT_SHAPE: dict[str, Any] = {
    "plan_id": str,
    "unit": int,
    "budget": dict,
    "shards": [SHARD_SHAPE],
    "sidecar_sha256": dict,
    "audit": AUDIT_SHAPE,
    "cut_documents?": int,
    "cut_tokens?": int,
    "near_sha256?": OrNull(HASH),
}

# Bad documents and files that are named in an audit, and how much of the message is kept.
MAX_NAMED_BAD = 5
MAX_NAMED_CHARACTERS = 300


@dataclass
class Audit:
    """What became of the documents of a unit, or of the whole set."""

    documents_read: int = 0
    train: int = 0
    validation: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: {"empty": 0, "null": 0})
    texts_repaired: int = 0
    text_bytes: int = 0
    rows_by_source: dict[str, int] = field(default_factory=dict)
    # --on-bad-document skip: how many files, or pieces of files, were left out as a whole, for each
    # reason, and the first few of all that was left out, in words.
    left_out: dict[str, int] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    # --dedup near: how many clusters of copies had how many documents, before all but one went.
    clusters: dict[str, int] = field(default_factory=dict)
    # The files that list near copies, and their sha256s.
    copies: dict[str, str] = field(default_factory=dict)
    # --chat: how many units had rows of each kind, and the most tokens of a chat that is too long.
    kinds: dict[str, int] = field(default_factory=dict)
    longest: int = 0

    @property
    def content(self) -> Json:
        """The audit as a manifest has it: only if it has any, what newer options count."""
        return {
            key: value
            for key, value in asdict(self).items()
            if value or key not in ("left_out", "bad", "clusters", "copies", "kinds", "longest")
        }

    def leave_out(self, error: BadDocument) -> None:
        """Count and name a file, or a piece of one, that was left out as a whole."""
        self.add(Audit(left_out={error.reason: 1}, bad=[str(error)]))

    def add(self, other: "Audit") -> None:
        """Add another audit's counts to this one."""
        self.documents_read += other.documents_read
        self.train += other.train
        self.validation += other.validation
        self.texts_repaired += other.texts_repaired
        self.text_bytes += other.text_bytes
        self.longest = max(self.longest, other.longest)
        for mine, theirs in (
            (self.dropped, other.dropped),
            (self.rows_by_source, other.rows_by_source),
            (self.left_out, other.left_out),
            (self.clusters, other.clusters),
            (self.kinds, other.kinds),
        ):
            for key, count in theirs.items():
                mine[key] = mine.get(key, 0) + count
        self.copies = self.copies | other.copies
        self.bad = [*self.bad, *(shorten(message) for message in other.bad)][:MAX_NAMED_BAD]


def shorten(message: str) -> str:
    """A message, cut to what an audit keeps of it."""
    if len(message) <= MAX_NAMED_CHARACTERS:
        return message
    return message[: MAX_NAMED_CHARACTERS - 3] + "..."


@dataclass(frozen=True)
class Receipt:
    """What a finished unit left: its shards, its audit, and the budget it was done under."""

    plan_id: str
    unit: int
    budget: Budget
    # Whether the budget ended it before its last document.
    truncated: bool
    shards: tuple[Shard, ...]
    sidecar_sha256: dict[str, str]
    audit: Audit
    # What --dedup later cut from its shards.
    cut_documents: int = 0
    cut_tokens: int = 0
    # --dedup near: the sha256 of the file of its documents' signatures (prep/units/signed.py).
    near_sha256: str | None = None

    @property
    def num_documents(self) -> int:
        """Documents that it used of the budget: those in its shards, and the copies cut later."""
        return sum(shard.num_documents for shard in self.shards) + self.cut_documents

    @property
    def num_tokens(self) -> int:
        """Tokens that it used of the budget: those in its shards, and the copies cut later."""
        kept = sum(shard.num_tokens - shard.padding_tokens for shard in self.shards)
        return kept + self.cut_tokens

    @property
    def is_packed(self) -> bool:
        """Whether its documents lie in rows, and no longer in the order in which they were read."""
        return any(shard.row_tokens is not None for shard in self.shards)


def write_pending(folder: Path, receipt: Receipt) -> None:
    """Record which shards a unit makes, before they get their names."""
    own = temporary_folder(folder) / f"{receipt.unit:05d}-{secrets.token_hex(8)}"
    write_file(own, json.dumps(asdict(receipt), indent=1) + "\n")
    commit(own, pending_path(folder, receipt.unit))


def confirm_pending(folder: Path, unit: int) -> None:
    """Make the pending receipt the receipt: from then on the unit is done.

    If Ray takes a live machine for dead, a unit is done twice, with the same bytes, and the other
    task may have done this already.
    """
    try:
        commit(pending_path(folder, unit), receipt_path(folder, unit))
    except FileNotFoundError:
        if not has_receipt(folder, unit):
            raise


def has_receipt(folder: Path, unit: int) -> bool:
    """Whether a unit has a receipt, whatever it says."""
    return receipt_path(folder, unit).is_file()


def read_receipt(folder: Path, unit: int, plan_id: str) -> Receipt | None:
    """A unit's receipt, if it is of this plan and all its files are there, whole.

    Its signatures are needed until it is decided which documents are near copies.
    """
    path = receipt_path(folder, unit)
    if not path.is_file():
        return None
    receipt = load_receipt(path, unit)
    whole = all(has_files(folder, shard) for shard in receipt.shards)
    if receipt.near_sha256 and not decided_path(folder).exists():
        whole &= near_path(folder, unit).is_file()
    return receipt if whole and receipt.plan_id == plan_id else None


def load_receipt(path: Path, unit: int) -> Receipt:
    """Read the receipt of a unit, at `path`.

    Raises ValueError with one line if it is damaged, or names files that are not this unit's:
    what it names may be deleted.
    """
    raw = load_json(path)
    fault = find_misshape(raw, RECEIPT_SHAPE) or find_strange(raw, unit)
    if fault is not None:
        raise ValueError(
            f"{path}: {fault}; it was edited or damaged, so remove it and run the same command "
            "again, which makes the unit again"
        )
    return parse_receipt(raw)


def find_strange(raw: Json, unit: int) -> str | None:
    """What in a receipt of the right shape cannot be of this unit, in words; None if all can."""
    own = re.compile(rf"({'|'.join(SPLITS)})-{unit:05d}(-\d+)?\.bin")
    counts = {**raw["audit"]["dropped"], **raw["audit"]["rows_by_source"]}
    limits = [raw["budget"].get(key) for key in ("documents", "tokens")]
    sidecars = [Shard(**entry).sidecar for entry in pick_shards(raw)]
    hashes = [raw["sidecar_sha256"].get(name) for name in sidecars]
    if raw["unit"] != unit:
        return f"is of unit {raw['unit']}"
    if any(type(count) is not int or count < 0 for count in counts.values()):
        return "counts documents by something other than whole numbers"
    if any(limit is not None and (type(limit) is not int or limit < 0) for limit in limits):
        return "has a budget other than whole numbers"
    if not isinstance(raw.get("truncated"), bool) or not all(isinstance(h, str) for h in hashes):
        return "does not say whether it was cut short, or the sha256 of each sidecar"
    if any(entry.get(WIDTH, 2) not in TOKEN_BYTES.values() for entry in raw["shards"]):
        return (
            f"has a shard with another {WIDTH} than {' or '.join(map(str, TOKEN_BYTES.values()))}"
        )
    packed = [entry.get(key) for entry in raw["shards"] for key in PACKED]
    if any(count is not None and (type(count) is not int or count < 0) for count in packed):
        return "has a shard whose rows or padding are other than whole numbers"
    strange = [entry["name"] for entry in raw["shards"] if not own.fullmatch(entry["name"])]
    return f"{strange[0]!r} is not a file of unit {unit}" if strange else None


def pick_shards(raw: Json) -> list[Json]:
    """The entries of a receipt's shards."""
    keys = (*SHARD_SHAPE, WIDTH, *PACKED)
    return [{key: entry[key] for key in keys if key in entry} for entry in raw["shards"]]


def parse_receipt(raw: Json) -> Receipt:
    """A receipt from JSON of its shape; older ones have no counts of cut copies."""
    return Receipt(
        raw["plan_id"],
        raw["unit"],
        Budget(raw["budget"].get("documents"), raw["budget"].get("tokens")),
        raw["truncated"],
        tuple(Shard(**entry) for entry in pick_shards(raw)),
        raw["sidecar_sha256"],
        Audit(**{e.name: raw["audit"][e.name] for e in fields(Audit) if e.name in raw["audit"]}),
        raw.get("cut_documents", 0),
        raw.get("cut_tokens", 0),
        raw.get("near_sha256"),
    )


def has_files(folder: Path, shard: Shard) -> bool:
    """Whether a shard's two files are there, the .bin with the right size."""
    path = folder / shard.name
    has_tokens = path.is_file() and path.stat().st_size == shard.num_bytes
    return has_tokens and (folder / shard.sidecar).is_file()


def discard_unit(folder: Path, unit: int) -> None:
    """Discard a unit, or what a kill left of it.

    Its receipt becomes a pending one first, so that a kill on the way leaves no shard that no
    receipt names; whoever finds a pending receipt discards its unit.
    """
    pending = pending_path(folder, unit)
    if receipt_path(folder, unit).exists():
        load_receipt(receipt_path(folder, unit), unit)
        commit(receipt_path(folder, unit), pending)
    if not pending.exists():
        return
    for shard in load_receipt(pending, unit).shards:
        (folder / shard.name).unlink(missing_ok=True)
        (folder / shard.sidecar).unlink(missing_ok=True)
    near_path(folder, unit).unlink(missing_ok=True)
    sync_folder(folder)
    pending.unlink()
    sync_folder(pending.parent)
