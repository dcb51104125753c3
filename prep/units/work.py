"""A unit's work: read its documents, encode them, write its shards, commit, leave a receipt.

Everything is made under temporary names and renamed when it is whole; the receipt comes last.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from prep.chat.reader import ChatReader
from prep.files.stamp import expect_unchanged
from prep.policy import NEAR, Policy
from prep.readers.documents import BadDocument, Documents, Piece
from prep.readers.formats import read_documents
from prep.remote.download import download
from prep.remote.pinned import RemoteFile, local_path, remove_files
from prep.text.batch import EncodedBatch, check_encoding, encode_batch
from prep.text.filters import Choice, make_filter
from prep.tokenizer.encoder import load_encoder
from prep.tokenizer.identity import SetTokenizer
from prep.units.budget import Budget
from prep.units.receipts import Audit, Receipt, confirm_pending, write_pending
from prep.units.signed import Signatures, commit_signatures, near_settings
from prep.units.waiting import Joined, Waiting
from shards.disk.durable import advise_writing
from shards.disk.folders import remove
from shards.disk.layout import TOKENIZER, downloads_folder, temporary_folder
from shards.format import SPLITS
from shards.packing.writer import Packing, make_writer
from shards.writer import commit_shards

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
    tokenizer: SetTokenizer
    budget: Budget
    remote: tuple[RemoteFile, ...]  # those files of this unit that are fetched

    @property
    def packing(self) -> Packing | None:
        """How its documents are packed; None if they are not, or not before copies are dropped."""
        row_tokens = self.policy.row_tokens
        if row_tokens is None or self.policy.dedup:
            return None
        return Packing(row_tokens, self.tokenizer.end_of_text)


def process_unit(job: UnitJob, report: Report) -> Receipt:
    """Do a unit from its sources to its receipt."""
    left_out: dict[Piece, BadDocument] = {}
    while (receipt := try_unit(job, report, left_out)) is None:
        pass
    remove_files(job.remote, downloads_folder(job.folder))
    return receipt


def try_unit(job: UnitJob, report: Report, left_out: dict[Piece, BadDocument]) -> Receipt | None:
    """Do a unit without the pieces that are left out.

    None if another must be left out, of which documents were written already: it is added, and the
    unit begins again. So the documents before the damage do not depend on who reads it, and how.
    """
    temporary = Path(
        tempfile.mkdtemp(prefix=f"{job.number:05d}-", dir=temporary_folder(job.folder))
    )
    work = UnitWork(job, temporary, report, left_out)
    try:
        return work.run()
    except LeaveOut:
        return None
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


class LeaveOut(Exception):
    """A piece turned out to be bad after documents of it were written."""


class UnitWork:
    """A unit in progress: its writers, its counts, and what is left of its budget."""

    def __init__(
        self, job: UnitJob, temporary: Path, report: Report, left_out: dict[Piece, BadDocument]
    ) -> None:
        self.job = job
        self.left_out = left_out
        self.report = report
        self.encoder = load_encoder(job.folder / TOKENIZER, job.encoder)
        self.filter = make_filter(job.policy, job.folder)
        self.threshold = job.policy.validation_threshold()
        self.writers = {
            split: make_writer(
                temporary,
                split,
                f"{split}-{job.number:05d}",
                job.policy.shard_tokens,
                job.tokenizer.token_bytes,
                job.packing,
            )
            for split in SPLITS
        }
        # The sides of the split of which no document was checked yet.
        self.unchecked = {False, True}
        self.audit = Audit()
        self.budget = job.budget
        self.num_read = 0
        self.num_tokens = 0
        self.truncated = False
        self.remote = {file.name: file for file in job.remote}
        self.waiting = Waiting()
        self.temporary = temporary
        self.chats = None
        if job.policy.chat:
            self.chats = ChatReader(job.folder, job.policy, job.tokenizer)
        self.signatures = None
        if job.policy.dedup == NEAR:
            self.signatures = Signatures(near_settings(job.policy))

    def run(self) -> Receipt:
        """Read all pieces, commit their shards, and leave the receipt."""
        for piece in self.job.pieces:
            self.read_piece(piece)
            if self.truncated:
                break
        self._encode()
        if self.chats:
            kinds = {} if self.chats.kind is None else {self.chats.kind: 1}
            self.audit.add(Audit(kinds=kinds, longest=self.chats.longest))
        written = [entry for split in SPLITS for entry in self.writers[split].finish()]
        signed, near_sha256 = self.temporary / "signatures", None
        if self.signatures:
            near_sha256 = self.signatures.write(signed)
        receipt = Receipt(
            self.job.plan_id,
            self.job.number,
            self.job.budget,
            self.truncated,
            tuple(entry.shard for entry in written),
            {entry.shard.sidecar: entry.sidecar_sha256 for entry in written},
            self.audit,
            near_sha256=near_sha256,
        )
        write_pending(self.job.folder, receipt)
        commit_shards(written, self.job.folder)
        if self.signatures:
            commit_signatures(signed, self.job.folder, self.job.number)
        confirm_pending(self.job.folder, self.job.number)
        return receipt

    def close(self) -> None:
        """Close files that are still open because the work failed, and what reads chats."""
        if self.chats:
            self.chats.close()
        for writer in self.writers.values():
            writer.close()

    def read_piece(self, piece: Piece) -> None:
        """Read a piece's documents to its end, or to the end of the budget.

        A piece that cannot be read to its end is left out as a whole, if bad documents are.
        """
        num_read = self.num_read
        if piece not in self.left_out:
            fetched = self._fetch(piece)
            try:
                self._read(fetched)
            except BadDocument as error:
                if not self.job.policy.skips_bad:
                    self._forget(piece)
                    raise error.named(fetched) if piece.name in self.remote else error from None
                self.left_out[piece] = error.named(fetched)
                if self.num_read > num_read:
                    raise LeaveOut from None
        if self.num_read > num_read:
            return
        self._encode()  # What is counted is counted in the order of the pieces.
        if piece in self.left_out:
            self.audit.leave_out(self.left_out[piece])
        else:
            self.audit.rows_by_source.setdefault(piece.name, 0)

    def _read(self, piece: Piece) -> None:
        policy = self.job.policy
        with expect_unchanged(piece.path, piece.stamp):
            for documents in read_documents(
                piece,
                policy.reads,
                policy.blank_line_documents,
                self.filter.columns,
                policy.skips_bad,
            ):
                self.num_read += len(documents.rows)
                if self.chats and not self.truncated:
                    documents = self.chats.read(documents)
                if not self.truncated:
                    self._add(documents, piece)
                # Whether a piece is left out must not depend on where the budget ends.
                if self.truncated and not policy.skips_bad:
                    return

    def _fetch(self, piece: Piece) -> Piece:
        """The piece with a path to read: a file from elsewhere is fetched if it is not there."""
        file = self.remote.get(piece.name)
        if file is None:
            return piece
        return replace(piece, path=str(download(file, downloads_folder(self.job.folder))))

    def _forget(self, piece: Piece) -> None:
        """Remove a fetched file that cannot be read, if there was no hash to tell its damage."""
        file = self.remote.get(piece.name)
        if file and not (file.sha256 or file.git_sha1):
            local_path(file, downloads_folder(self.job.folder)).unlink(missing_ok=True)

    def _add(self, documents: Documents, piece: Piece) -> None:
        """Encode documents with those of other pieces; at once if a budget or condition is set."""
        if not self.waiting.has_room_for(documents):
            self._encode()
        self.waiting.add(documents, piece)
        is_plain = self.budget == Budget() and not documents.columns
        if not is_plain or not self.waiting.has_room_for(documents):
            self._encode()

    def _encode(self) -> None:
        """Encode and write the documents that wait, as far as the budget goes."""
        if not self.waiting.entries:
            return
        joined = self.waiting.take()
        documents = joined.documents
        choice = self.filter.choose(documents)
        kept = choice.kept
        wanted, files = documents, joined.files
        if not kept.all():
            wanted, files = documents.filter(kept), files.filter(pa.array(kept))
        columns = self.filter.keep_columns(wanted)
        if self.chats:
            batch = self.chats.take(wanted, files, self.threshold, columns)
        else:
            batch = encode_batch(
                self.encoder,
                wanted,
                files,
                self.threshold,
                self.job.tokenizer,
                lambda index: joined.name(int(np.flatnonzero(kept)[index])),
                columns,
            )
            self._check(wanted, batch)
        fitting = self.budget.count_fitting(batch.ends)
        if fitting < len(batch.rows):
            self.truncated = True
            batch = batch.first(fitting)
            # What follows the last document that fits does not count as read.
            num_read = int(np.flatnonzero(kept)[fitting - 1]) + 1 if fitting else 0
            documents = documents.first(num_read)
            choice = self.filter.choose(documents)
        for split, is_validation in (("train", False), ("validation", True)):
            self.writers[split].append(*batch.split(is_validation))
        if self.signatures:
            self.signatures.add(wanted.texts[:fitting], batch.is_validation)
        self.budget = self.budget.minus(fitting, len(batch.tokens))
        self.num_tokens += len(batch.tokens)
        self._count(documents, choice, batch, joined)
        self.report(self.audit.documents_read, self.num_tokens, self.audit.text_bytes)

    def _check(self, documents: Documents, batch: EncodedBatch) -> None:
        """Check some of the documents against the reference, if another encoder is used."""
        if self.encoder.fast is not None:
            chosen = batch.choose_checked(self.unchecked)
            check_encoding(
                self.encoder, documents.texts, batch, chosen, self.job.tokenizer.num_before
            )
            self.unchecked.difference_update(batch.is_validation.tolist())

    def _count(
        self, documents: Documents, choice: Choice, batch: EncodedBatch, joined: Joined
    ) -> None:
        num_validation = int(batch.is_validation.sum())
        num_read = len(documents.rows)
        self.audit.add(
            Audit(
                documents_read=num_read,
                train=len(batch.rows) - num_validation,
                validation=num_validation,
                dropped=choice.dropped,
                texts_repaired=int(documents.repaired.sum()),
                text_bytes=int(batch.num_bytes.sum()),
                rows_by_source=joined.count_rows(num_read),
                bad=[
                    str(choice.bad[place].named(joined.find_piece(place)))
                    for place in sorted(choice.bad)
                ],
            )
        )
