"""Removes documents from a finished set: found by URL or hash, left out of a new version."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.disk.folders import remove
from shards.disk.json_files import Json
from shards.disk.layout import TOKENIZER, version_folder
from shards.disk.space import check_space
from shards.documents import Document, make_document, parse_hash
from shards.edit.next_version import NextVersion
from shards.edit.rewrite import Rewriter, Rewritten, subtract_bytes
from shards.edit.versions import begin_version, commit_version, name_next
from shards.format import SPLITS, Manifest, Shard
from shards.parent import CUT, KEEP_PLACES, REMOVE, Parent
from shards.reader import Shards
from shards.rows import read_rows, take_rows
from shards.schema import list_copies
from shards.sidecar import BLANK_HASH, Marks
from shards.tokenizer import load_spelling


@dataclass(frozen=True)
class Wanted:
    """What to remove: the documents with one of these URLs or hashes."""

    urls: frozenset[str] = frozenset()
    # 16 bytes each.
    hashes: frozenset[bytes] = frozenset()

    def mark(self, rows: pa.RecordBatch) -> Marks:
        """Which rows of a sidecar are wanted; they need no more than `columns`."""
        marks = []
        if self.urls:
            urls = pa.array(sorted(self.urls), pa.string())
            marks.append(pc.is_in(rows.column("url"), value_set=urls))
        if self.hashes:
            hashes = pa.array(sorted(self.hashes), pa.binary(16))
            marks.append(pc.is_in(rows.column("doc_hash"), value_set=hashes))
        found = marks[0] if len(marks) == 1 else pc.or_(*marks)
        return np.asarray(found.to_numpy(zero_copy_only=False))

    @property
    def columns(self) -> list[str]:
        """The columns of a sidecar that `mark` reads."""
        return ["url"] * bool(self.urls) + ["doc_hash"] * bool(self.hashes)


@dataclass(frozen=True)
class Found:
    """A document to remove: its shard, its row there, and what it is."""

    shard: Shard
    row: int
    document: Document


def collect_wanted(
    urls: Iterable[str], url_file: Path | None, hashes: Iterable[str], hash_file: Path | None
) -> Wanted:
    """The documents that the options name; a file has one entry per line."""
    all_urls = {*urls, *(read_lines(url_file) if url_file else ())}
    all_hashes = {*hashes, *(read_lines(hash_file) if hash_file else ())}
    digests = frozenset(parse_hash(entry) for entry in all_hashes)
    if BLANK_HASH in digests:
        raise ValueError(f"doc hash {BLANK_HASH.hex()} stands for removed documents")
    if not all_urls and not digests:
        raise ValueError(
            "which documents? name them with --url, --url-file, --doc-hash or --hash-file"
        )
    return Wanted(frozenset(all_urls), digests)


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a text file, stripped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); expected one entry per line") from None
    return [line.strip() for line in text.split("\n") if line.strip()]


def find_wanted(shards: Shards, wanted: Wanted) -> list[Found]:
    """The wanted documents of a set, in manifest order."""
    found: list[Found] = []
    for split in SPLITS:
        start = 0
        for shard in shards.manifest.split(split):
            found += find_in_shard(shards.folder, shard, start, wanted)
            start += shard.num_tokens
    return found


def find_in_shard(folder: Path, shard: Shard, start: int, wanted: Wanted) -> Iterator[Found]:
    """The wanted documents of a shard that begins at `start` in its split's stream."""
    first = 0
    for batch in read_rows(folder, shard, wanted.columns):
        rows = first + np.flatnonzero(wanted.mark(batch))
        if len(rows):
            entries = take_rows(folder, shard, rows).to_pylist()
            for row, entry in zip(rows.tolist(), entries, strict=True):
                yield Found(shard, row, make_document(shard, start, entry))
        first += len(batch)


def find_missing(wanted: Wanted, found: list[Found]) -> list[str]:
    """The wanted URLs, then hashes, that no document has; each sorted."""
    urls = {entry.document.url for entry in found}
    hashes = {entry.document.doc_hash for entry in found}
    return sorted(wanted.urls - urls) + sorted({h.hex() for h in wanted.hashes} - hashes)


def remove_documents(shards: Shards, found: list[Found], keeps_places: bool) -> Manifest:
    """Make a version of the set without the documents; returns its manifest.

    Raises ValueError or OSError if the disk is too full or a file is damaged; the old version then
    stays as it is.
    """
    changed: dict[Shard, list[int]] = {}
    for entry in found:
        changed.setdefault(entry.shard, []).append(entry.row)
    refuse_linked(shards.folder, list(changed))
    check_disk(shards.folder, list(changed))
    work = begin_version(shards.folder)
    try:
        manifest = shards.manifest
        spelling = load_spelling(
            shards.folder / TOKENIZER, manifest.end_of_text, manifest.begin_of_text
        )
        rewriter = Rewriter(shards.folder, work, spelling, keeps_places, manifest.row_tokens)
        rewritten = rewrite_shards(rewriter, shards.manifest, changed)
    except BaseException:
        remove(work)
        raise
    text = describe_removal(shards.manifest, rewritten, keeps_places)
    gone = tuple(list_copies(shards.manifest.audit))
    return commit_version(shards.folder, plan_moves(shards.folder, rewritten, text, gone))


def refuse_linked(folder: Path, changed: list[Shard]) -> None:
    """ValueError if a file to be deleted is a link: what is to be removed would stay behind it."""
    for shard in changed:
        for path in (folder / shard.name, folder / shard.sidecar):
            if path.is_symlink():
                raise ValueError(
                    f"{path}: is a symbolic link to {os.readlink(path)}, where the documents would "
                    f"stay; move that file to {path}, and run the same command again"
                )


def check_disk(folder: Path, changed: list[Shard]) -> None:
    """ValueError if the new shards do not fit on the disk beside the old ones."""
    needed = sum(shard.num_bytes for shard in changed)
    needed += sum((folder / shard.sidecar).stat().st_size for shard in changed)
    details = f"{len(changed):,} shards are rewritten before the old ones are deleted"
    check_space(folder, needed, "name fewer documents", details)


def rewrite_shards(
    rewriter: Rewriter, manifest: Manifest, changed: dict[Shard, list[int]]
) -> dict[Shard, Rewritten]:
    """Rewrite each changed shard, several at a time."""

    def rewrite(shard: Shard) -> Rewritten:
        rows = np.array(changed[shard], np.int64)
        sidecar_hash = manifest.sidecar_sha256(shard)
        return rewriter.rewrite(shard, rows, name_next(shard.name), sidecar_hash)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(zip(changed, threads.map(rewrite, changed), strict=True))


def describe_removal(
    manifest: Manifest, rewritten: dict[Shard, Rewritten], keeps_places: bool
) -> str:
    """The new version's manifest. It names its parent but no document that was removed."""
    entries = rewritten.values()
    written = [entry.written for entry in entries if entry.written]
    shards = []
    for shard in manifest.shards:
        entry = rewritten.get(shard)
        if entry is None:
            shards.append(shard)
        elif entry.written:
            shards.append(entry.written.shard)
    parent = Parent(
        manifest.dataset_id,
        REMOVE,
        mode=KEEP_PLACES if keeps_places else CUT,
        documents=sum(entry.num_documents for entry in entries),
        tokens=sum(entry.num_tokens for entry in entries),
    )
    hashes = {entry.shard.sidecar: entry.sidecar_sha256 for entry in written}
    audit = count_removed(manifest, rewritten)
    return manifest.next_version(parent, shards, hashes, audit, keeps_places)


def count_removed(manifest: Manifest, rewritten: dict[Shard, Rewritten]) -> Json:
    """The audit after the removal: documents read still add up to those kept plus those dropped.

    Lists of near copies go, as they name documents and what was like them.
    """
    audit = {key: value for key, value in manifest.audit.items() if key != "copies"}
    dropped = dict(audit.get("dropped", {}))
    for shard, entry in rewritten.items():
        audit[shard.split] = audit.get(shard.split, 0) - entry.num_documents
        audit["text_bytes"] = subtract_bytes(audit.get("text_bytes", 0), entry)
        dropped["removed"] = dropped.get("removed", 0) + entry.num_documents
    return audit | {"dropped": dropped}


def plan_moves(
    folder: Path, rewritten: dict[Shard, Rewritten], manifest: str, lists: tuple[str, ...]
) -> NextVersion:
    """What is left to do: the new files get their names, the old ones are deleted."""
    work = version_folder(folder).relative_to(folder)
    added = [entry.written.shard for entry in rewritten.values() if entry.written]
    names = [name for shard in added for name in (shard.sidecar, shard.name)]
    gone = [name for shard in rewritten for name in (shard.name, shard.sidecar)]
    moves = tuple(((work / name).as_posix(), name) for name in names)
    return NextVersion(manifest, moves, (*gone, *lists))
