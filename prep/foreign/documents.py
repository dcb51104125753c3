"""The documents of imported token files, each with an end-of-document token, block by block.

Memory holds a block and the longest document, whatever the size of the files.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from prep.foreign.files import INSTEAD, ForeignFile, is_next
from prep.tokenizer.identity import SetTokenizer
from shards.disk.durable import hash_file
from shards.exchange.megatron import Index
from shards.format import Int64
from shards.widths import Tokens, token_dtype

BLOCK_TOKENS = 1 << 20
BLOCK_DOCUMENTS = 1 << 16
# More tokens than this without an end are not text: it would be about 500 MB.
MAX_DOCUMENT_TOKENS = 1 << 27


@dataclass(frozen=True)
class FoundDocuments:
    """Whole documents of one file, in order; `tokens` is their concatenation."""

    tokens: Tokens
    # Where each ends in `tokens`, after the token that ends it.
    ends: Int64
    file: ForeignFile
    # The number of each in its file.
    rows: Int64


@dataclass
class Notes:
    """What was found on the way, for the manifest."""

    # Of each file, by name.
    sha256: dict[str, str] = field(default_factory=dict)
    # Documents that had no end token after them in a Megatron or nanoGPT file.
    ends_added: int = 0
    # Documents that Megatron's index counts as part of the one before: an end token splits them.
    parted: int = 0
    # llm.c documents that continue in the next file, and those whose beginning is in no file here.
    joined: int = 0
    without_beginning: int = 0
    # Documents whose bytes are not UTF-8: cut between the bytes of a character.
    not_utf8: int = 0


def read_documents(
    files: list[ForeignFile], tokenizer: SetTokenizer, notes: Notes
) -> Iterator[FoundDocuments]:
    """All documents of the files, in order; `notes` is filled on the way.

    Raises ValueError naming the file if an id is not the tokenizer's, or the file changes
    meanwhile.
    """
    cutter = DocumentCutter(tokenizer)
    for file in files:
        reader = TokenReader(file, tokenizer)
        with reader.source:
            if file.index is not None:
                yield from cutter.finish()
                yield from read_indexed(reader, file.index, notes)
            elif file.format == "llmc":
                yield from read_llmc(reader, cutter, notes)
            else:
                yield from cutter.finish()
                yield from read_nanogpt(reader, cutter, notes)
            notes.sha256[file.name] = reader.finish()
        if file.index is not None:
            notes.sha256[file.index_name] = hash_file(file.index_path)
    yield from cutter.finish()


def read_nanogpt(
    reader: "TokenReader", cutter: "DocumentCutter", notes: Notes
) -> Iterator[FoundDocuments]:
    """Documents with an end token after each."""
    cutter.begin(reader.file)
    for tokens in reader.blocks():
        yield from cutter.add(tokens)
    if cutter.num_pending:
        notes.ends_added += 1
        yield from cutter.finish()
    cutter.forget()


def read_llmc(
    reader: "TokenReader", cutter: "DocumentCutter", notes: Notes
) -> Iterator[FoundDocuments]:
    """Documents with an end token before each; the last one stays open for the next file."""
    for number, tokens in enumerate(reader.blocks()):
        if number == 0:
            earlier = cutter.file
            if tokens[0] == cutter.end_of_text:
                yield from cutter.finish()
                cutter.begin(reader.file)
                tokens = tokens[1:]
            elif cutter.open and earlier and is_continued(earlier, reader.file):
                notes.joined += 1
                cutter.go_on(reader.file)
            else:
                notes.without_beginning += 1
                yield from cutter.finish()
                cutter.begin(reader.file)
        yield from cutter.add(tokens)


def is_continued(file: ForeignFile, following: ForeignFile) -> bool:
    """Whether a document at the end of `file` may continue in `following`."""
    same = (file.split, file.format) == (following.split, following.format)
    return same and is_next(file.path, following.path)


def read_indexed(reader: "TokenReader", index: Index, notes: Notes) -> Iterator[FoundDocuments]:
    """Megatron's documents: the sequences between two bounds of its index."""
    for first in range(0, index.num_documents, BLOCK_DOCUMENTS):
        last = min(first + BLOCK_DOCUMENTS, index.num_documents)
        bounds = index.document_bounds(first, last)
        document = 0
        while document < last - first:
            stop = int(np.searchsorted(bounds, bounds[document] + BLOCK_TOKENS, side="right")) - 1
            stop = max(stop, document + 1)
            ends = bounds[document + 1 : stop + 1] - bounds[document]
            if int(ends[0]) > MAX_DOCUMENT_TOKENS:
                raise make_endless_error(reader.file, reader.tokenizer.end_of_text)
            tokens = reader.read(int(ends[-1]))
            end_of_text = reader.tokenizer.end_of_text
            yield end_documents(tokens, ends, end_of_text, reader.file, first + document, notes)
            document = stop


def end_documents(
    tokens: Tokens,
    ends: Int64,
    end_of_text: int,
    file: ForeignFile,
    first_row: int,
    notes: Notes,
) -> FoundDocuments:
    """Documents with one end token after each and none inside.

    Megatron's --append-eod is optional. If text that spells the token became it, a document has
    one inside and ends there: what follows is a document with the same number.
    """
    sizes = np.diff(ends, prepend=0)
    is_ended = np.zeros(len(ends), np.bool_)
    is_ended[sizes > 0] = tokens[ends[sizes > 0] - 1] == end_of_text
    tokens = np.insert(tokens, ends[~is_ended], end_of_text)
    ends = ends + np.cumsum(~is_ended)
    all_ends = np.flatnonzero(tokens == end_of_text) + 1
    rows = first_row + np.searchsorted(ends, all_ends)
    notes.ends_added += int((~is_ended).sum())
    notes.parted += len(all_ends) - len(ends)
    return FoundDocuments(tokens, all_ends, file, rows)


class DocumentCutter:
    """Cuts a stream of ids after each end token; a document may come in many pieces."""

    def __init__(self, tokenizer: SetTokenizer) -> None:
        self.end_of_text = tokenizer.end_of_text
        self.dtype = token_dtype(tokenizer.token_bytes)
        self.file: ForeignFile | None = None
        self.next_row = 0
        # The document that is not ended yet: where it began, and its tokens.
        self.open: tuple[ForeignFile, int] | None = None
        self.pending: list[Tokens] = []
        self.num_pending = 0

    def begin(self, file: ForeignFile) -> None:
        """Start a file, and with it a new document."""
        assert self.open is None
        self.file, self.open, self.next_row = file, (file, 0), 1

    def go_on(self, file: ForeignFile) -> None:
        """Start a file in which the open document continues."""
        assert self.open is not None
        self.file, self.next_row = file, 0

    def add(self, tokens: Tokens) -> Iterator[FoundDocuments]:
        """The documents that end in `tokens`, the first of which may have begun before."""
        assert self.open is not None
        assert self.file is not None
        ends = np.flatnonzero(tokens == self.end_of_text) + 1
        if not len(ends):
            self._keep(tokens)
            return
        self._keep(tokens[: ends[0]])
        yield self._take_open()
        rows = np.arange(self.next_row, self.next_row + len(ends))
        if len(ends) > 1:
            body = tokens[ends[0] : ends[-1]]
            yield FoundDocuments(body, ends[1:] - ends[0], self.file, rows[:-1])
        self.open, self.next_row = (self.file, int(rows[-1])), self.next_row + len(ends)
        self._keep(tokens[ends[-1] :])

    def finish(self) -> Iterator[FoundDocuments]:
        """End the open document, if there is one."""
        if self.open is not None:
            self._keep(np.array([self.end_of_text], self.dtype))
            yield self._take_open()

    def forget(self) -> None:
        """Drop the open document, which has no tokens: what follows is in another file."""
        assert not self.num_pending
        self.open = None

    def _keep(self, tokens: Tokens) -> None:
        assert self.file is not None
        self.num_pending += len(tokens)
        if self.num_pending > MAX_DOCUMENT_TOKENS:
            raise make_endless_error(self.file, self.end_of_text)
        if len(tokens):
            self.pending.append(tokens)

    def _take_open(self) -> FoundDocuments:
        assert self.open is not None
        file, row = self.open
        tokens = self.pending[0] if len(self.pending) == 1 else np.concatenate(self.pending)
        self.open, self.pending, self.num_pending = None, [], 0
        return FoundDocuments(tokens, np.array([len(tokens)]), file, np.array([row]))


class TokenReader:
    """Reads a file's ids from front to back, checks their range, and takes the file's sha256."""

    def __init__(self, file: ForeignFile, tokenizer: SetTokenizer) -> None:
        self.file = file
        self.tokenizer = tokenizer
        self.before = file.path.stat()
        self.source = open(file.path, "rb")  # noqa: SIM115 - closed by the caller
        self.sha256 = hashlib.sha256(self.source.read(file.offset))
        self.position = 0

    def blocks(self) -> Iterator[Tokens]:
        """All ids, some at a time."""
        while self.position < self.file.num_tokens:
            yield self.read(min(BLOCK_TOKENS, self.file.num_tokens - self.position))

    def read(self, count: int) -> Tokens:
        """The next `count` ids."""
        content = self.source.read(count * self.file.dtype.itemsize)
        self.sha256.update(content)
        if len(content) != count * self.file.dtype.itemsize:
            raise self._make_changed_error()
        tokens = np.frombuffer(content, self.file.dtype)
        num_ids = self.tokenizer.vocab_size
        if count and (int(tokens.max()) >= num_ids or int(tokens.min()) < 0):
            place = int(np.flatnonzero((tokens >= num_ids) | (tokens < 0))[0])
            raise ValueError(
                f"{self.file.path}: token {self.position + place:,} is the id {tokens[place]}; "
                f"the tokenizer ({self.tokenizer.name}) has 0 to {num_ids - 1}, so another one "
                f"made it: {INSTEAD}"
            )
        self.position += count
        return tokens.astype(token_dtype(self.tokenizer.token_bytes), copy=False)

    def finish(self) -> str:
        """The file's sha256; ValueError if the file has changed since it was opened."""
        after = self.file.path.stat()
        same = (after.st_size, after.st_mtime_ns) == (self.before.st_size, self.before.st_mtime_ns)
        if not same or self.source.read(1):
            raise self._make_changed_error()
        return self.sha256.hexdigest()

    def _make_changed_error(self) -> ValueError:
        return ValueError(
            f"{self.file.path}: changed while it was being read; wait until it is written, and "
            "import it again"
        )


def make_endless_error(file: ForeignFile, end_of_text: int) -> ValueError:
    """The error for a file without ends of documents."""
    return ValueError(
        f"{file.path}: has {MAX_DOCUMENT_TOKENS:,} ids in a row without {end_of_text}, the "
        f"end-of-document token; these are not documents of this tokenizer's: {INSTEAD}"
    )
