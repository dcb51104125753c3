"""A unit's work: read its documents, encode them, write its shards, commit, leave a receipt.

Everything is made under temporary names and renamed when it is whole; the receipt comes last.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prep.request import Policy
from prep.sources.documents import Documents, Piece
from prep.sources.formats import read_documents
from prep.sources.hub_files import HubDataset, download, remove_files
from prep.sources.stamp import expect_unchanged
from prep.text.batch import EncodedBatch, check_encoding, encode_batch
from prep.text.encoder import load_encoder
from prep.text.filters import make_filter
from prep.units.budget import Budget
from prep.units.receipts import Audit, Receipt, confirm_pending, write_pending
from shards.disk.durable import advise_writing
from shards.disk.folders import remove
from shards.disk.layout import TOKENIZER, downloads_folder, temporary_folder
from shards.format import SPLITS
from shards.writer import ShardWriter, commit_shards

# (documents read, tokens written, bytes of text read) of the unit so far.
Report = Callable[[int, int, int], None]


@dataclass(frozen=True)
class UnitJob:
    """Everything that a worker needs to do one unit."""

    number: int
    pieces: tuple[Piece, ...]
    folder: Path
    plan_id: str
    policy: Policy
    encoder: str
    end_of_text: int
    budget: Budget
    hub: HubDataset | None  # with only the files of this unit


def process_unit(job: UnitJob, report: Report) -> Receipt:
    """Do a unit from its sources to its receipt."""
    temporary = Path(
        tempfile.mkdtemp(prefix=f"{job.number:05d}-", dir=temporary_folder(job.folder))
    )
    work = UnitWork(job, temporary, report)
    try:
        receipt = work.run()
    except OSError as error:  # Sources raise ValueErrors that name them: this is our own writing.
        reason = os.strerror(error.errno) if error.errno else str(error)
        advice = advise_writing(error) or "fix that and run the same command again"
        raise ValueError(
            f"{job.folder}: unit {job.number} could not be written ({reason}); "
            f"{advice}; what is committed stays"
        ) from error
    finally:
        work.close()
        remove(temporary, ignore_errors=True)
    if job.hub:
        remove_files(job.hub, downloads_folder(job.folder))
    return receipt


class UnitWork:
    """A unit in progress: its writers, its counts, and what is left of its budget."""

    def __init__(self, job: UnitJob, temporary: Path, report: Report) -> None:
        self.job = job
        self.report = report
        self.encoder = load_encoder(job.folder / TOKENIZER, job.encoder)
        self.filter = make_filter(job.policy)
        self.threshold = job.policy.validation_threshold()
        self.writers = {
            split: ShardWriter(
                temporary, split, f"{split}-{job.number:05d}", job.policy.shard_tokens
            )
            for split in SPLITS
        }
        # The sides of the split of which no document was checked yet.
        self.unchecked = {False, True}
        self.audit = Audit()
        self.budget = job.budget
        self.num_tokens = 0
        self.truncated = False
        self.hub_files = {file.name: file for file in job.hub.files} if job.hub else {}

    def run(self) -> Receipt:
        """Read all pieces, commit their shards, and leave the receipt."""
        for piece in self.job.pieces:
            self.read_piece(piece)
            if self.truncated:
                break
        written = [entry for split in SPLITS for entry in self.writers[split].finish()]
        receipt = Receipt(
            self.job.plan_id,
            self.job.number,
            self.job.budget,
            self.truncated,
            tuple(entry.shard for entry in written),
            {entry.shard.sidecar: entry.sidecar_sha256 for entry in written},
            self.audit,
        )
        write_pending(self.job.folder, receipt)
        commit_shards(written, self.job.folder)
        confirm_pending(self.job.folder, self.job.number)
        return receipt

    def close(self) -> None:
        """Close files that are still open because the work failed."""
        for writer in self.writers.values():
            writer.close()

    def read_piece(self, piece: Piece) -> None:
        """Read a piece's documents to its end, or to the end of the budget."""
        self.audit.rows_by_source.setdefault(piece.name, 0)
        policy = self.job.policy
        piece = self._fetch(piece)
        with expect_unchanged(piece.path, piece.stamp):
            for documents in read_documents(
                piece, policy.text_column, policy.blank_line_documents, self.filter.columns
            ):
                self._add(documents, piece.name)
                self.report(self.audit.documents_read, self.num_tokens, self.audit.text_bytes)
                if self.truncated:
                    return

    def _fetch(self, piece: Piece) -> Piece:
        """The piece with a path to read: a file of the Hub is downloaded if it is not there."""
        if self.job.hub is None:
            return piece
        file = self.hub_files[piece.name]
        path = download(self.job.hub, file, downloads_folder(self.job.folder))
        return replace(piece, path=str(path))

    def _add(self, documents: Documents, source_file: str) -> None:
        kept, dropped = self.filter.choose(documents)
        wanted = documents if kept.all() else documents.filter(kept)
        batch = encode_batch(
            self.encoder, wanted, source_file, self.threshold, self.job.end_of_text
        )
        self._check(wanted, batch)
        fitting = self.budget.count_fitting(batch.ends)
        if fitting < len(batch.rows):
            self.truncated = True
            batch = batch.first(fitting)
            # What follows the last document that fits does not count as read.
            num_read = int(np.flatnonzero(kept)[fitting - 1]) + 1 if fitting else 0
            documents = documents.first(num_read)
            _, dropped = self.filter.choose(documents)
        for split, is_validation in (("train", False), ("validation", True)):
            self.writers[split].append(*batch.split(is_validation))
        self.budget = self.budget.minus(fitting, len(batch.tokens))
        self.num_tokens += len(batch.tokens)
        self._count(documents, dropped, batch, source_file)

    def _check(self, documents: Documents, batch: EncodedBatch) -> None:
        """Check some of the documents against the reference, if another encoder is used."""
        if self.encoder.fast is not None:
            chosen = batch.choose_checked(self.unchecked)
            check_encoding(self.encoder, documents.texts, batch, chosen)
            self.unchecked.difference_update(batch.is_validation.tolist())

    def _count(
        self, documents: Documents, dropped: dict[str, int], batch: EncodedBatch, source_file: str
    ) -> None:
        num_validation = int(batch.is_validation.sum())
        num_read = len(documents.rows)
        self.audit.add(
            Audit(
                documents_read=num_read,
                train=len(batch.rows) - num_validation,
                validation=num_validation,
                dropped=dropped,
                texts_repaired=int(documents.repaired.sum()),
                text_bytes=int(batch.num_bytes.sum()),
                rows_by_source={source_file: num_read},
            )
        )
