"""`velocity shards import`: token files made by other tools become a set.

files      each checked by header and size                  prep/foreign/files.py
documents  cut, ended, range-checked, block by block        prep/foreign/documents.py
text       decoded for its hash and size                    prep/foreign/text.py
shards     written in .prep/import, named in .prep/import.json, renamed; the manifest last
"""

import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from prep.foreign.documents import FoundDocuments, Notes, read_documents
from prep.foreign.files import ForeignFile, find_files
from prep.foreign.request import ImportRequest
from prep.foreign.taken import (
    clear_leftovers,
    describe_policy,
    find_files_there,
    list_sources,
    refuse_files,
    refuse_taken,
)
from prep.foreign.text import OriginCheck, TextReader
from prep.manifest import check_conservation, describe_content, describe_environment, summarize
from prep.planning.forecast import SIDECAR_SHARE
from prep.sources.local import Source
from prep.text.batch import EncodedBatch, choose_validation
from prep.tokenizer.choose import find_tokenizer, identify
from prep.tokenizer.encoder import load_encoder
from prep.tokenizer.identity import SetTokenizer
from prep.units.receipts import Audit
from shards.disk.durable import commit, hash_file, write_file
from shards.disk.folders import make_folder, remove
from shards.disk.layout import (
    MANIFEST,
    TOKENIZER,
    import_folder,
    import_names_path,
)
from shards.disk.lock import lock_set
from shards.disk.space import check_space
from shards.format import SPLITS, Manifest, make_manifest, read_manifest
from shards.screen.lines import ReadProgress, Say
from shards.sidecar import Marks, make_rows
from shards.writer import ShardWriter, WrittenShard, commit_shards, join_runs


def import_tokens(request: ImportRequest, say: Say) -> Manifest:
    """Make a set from token files; returns its manifest.

    Raises ValueError or OSError with one line for what the user can fix; the folder then holds
    no set, and the same command may be run again.
    """
    started = time.monotonic()
    threshold = request.policy.validation_threshold()
    if threshold and request.validation:
        raise ValueError(
            "--validation and --validation-fraction were both given; "
            "name the validation files or the fraction that goes there, not both"
        )
    made_by = find_tokenizer(request.tokenizer, say)
    tokenizer = identify(made_by, request.end_of_document, request.begin_of_document)
    named = (request.train, request.validation, request.format, request.add_end_of_text)
    files = find_files(*named, tokenizer)
    out = request.out
    refuse_taken(out, request, files, tokenizer)
    make_folder(out)
    with lock_set(out):
        refuse_taken(out, request, files, tokenizer)
        clear_leftovers(out)
        if (out / MANIFEST).exists():
            say(f"{out}: this set is finished already; nothing was done")
            return read_manifest(out)
        num_tokens = sum(file.num_tokens for file in files)
        num_bytes = int(num_tokens * tokenizer.token_bytes * (1 + SIDECAR_SHARE))
        check_space(out, num_bytes, "choose another --out")
        for file in files:
            say(f"{file.path}: {file.format}, {file.num_tokens:,} tokens, for {file.split}")
        temporary = import_folder(out)
        make_folder(temporary)
        write_file(temporary / TOKENIZER, made_by.text)
        work = ImportWork(temporary, threshold, request.shard_tokens, tokenizer)
        try:
            work.run(files)
            manifest = finish(request, files, work, started)
        finally:
            work.close()
            remove(temporary, ignore_errors=True)
    for line in [*describe_notes(work.notes), *summarize(manifest, out)]:
        say(line)
    return manifest


class ImportWork:
    """An import in progress: its writers and its counts."""

    def __init__(
        self, temporary: Path, threshold: int, shard_tokens: int, tokenizer: SetTokenizer
    ) -> None:
        self.temporary = temporary
        self.tokenizer = tokenizer
        self.threshold = threshold
        self.writers = {
            split: ShardWriter(
                temporary, split, f"{split}-00000", shard_tokens, tokenizer.token_bytes
            )
            for split in SPLITS
        }
        self.reader = TextReader(temporary / TOKENIZER, tokenizer)
        self.origin = OriginCheck(self.reader, load_encoder(temporary / TOKENIZER, "tokenizers"))
        self.audit = Audit(dropped={"empty": 0})
        self.notes = Notes()
        self.written: list[WrittenShard] = []

    def run(self, files: list[ForeignFile]) -> None:
        """Read all files and write their documents, under temporary names."""
        for file in files:
            self.audit.rows_by_source[file.name] = 0
        progress = ReadProgress("tokens", sum(file.num_tokens for file in files))
        for found in read_documents(files, self.tokenizer, self.notes):
            self.origin.sample(found)
            self.add(found)
            progress.add(len(found.tokens))
        progress.finish()
        for file in files:
            self.origin.judge(file.name, str(file.path))
        self.written = [entry for split in SPLITS for entry in self.writers[split].finish()]
        if not self.written:
            raise ValueError(f"{files[0].path}: holds no document that is not empty")

    def close(self) -> None:
        """Close files that are still open because the work failed."""
        for writer in self.writers.values():
            writer.close()

    def add(self, found: FoundDocuments) -> None:
        """Write documents; those with no token but the one that ends them are left out."""
        num_read, num_empty = len(found.ends), 0
        tokens, ends, rows = found.tokens, found.ends, found.rows
        kept = find_texts(found, self.tokenizer.begin_of_text)
        if not kept.all():
            tokens, rows = join_runs(tokens, ends, kept), rows[kept]
            ends = np.cumsum(np.diff(ends, prepend=0)[kept])
            num_empty = num_read - len(ends)
        facts = self.reader.examine(tokens, ends)
        if found.file.split == "validation":
            is_validation = np.ones(len(ends), np.bool_)
        else:
            is_validation = choose_validation(facts.hashes, self.threshold)
        batch = EncodedBatch(
            tokens,
            make_rows(
                np.diff(ends, prepend=0),
                pa.repeat(found.file.name, len(ends)),
                rows,
                pa.nulls(len(ends), pa.string()),
                facts.hashes,
            ),
            ends,
            is_validation,
            facts.num_bytes,
        )
        for split, side in (("train", False), ("validation", True)):
            self.writers[split].append(*batch.split(side))
        num_validation = int(is_validation.sum())
        self.notes.not_utf8 += int((~facts.is_utf8).sum())
        self.audit.add(
            Audit(
                documents_read=num_read,
                train=len(ends) - num_validation,
                validation=num_validation,
                dropped={"empty": num_empty},
                text_bytes=int(facts.num_bytes.sum()),
                rows_by_source={found.file.name: num_read},
            )
        )


def find_texts(found: FoundDocuments, begin_of_text: int | None) -> Marks:
    """Which documents have a token besides their end and, if they all have one, their beginning.

    Raises ValueError if one that is not empty does not begin with it.
    """
    sizes = np.diff(found.ends, prepend=0)
    if begin_of_text is None:
        return sizes > 1
    has_begin = found.tokens[found.ends - sizes] == begin_of_text
    wrong = np.flatnonzero(~has_begin & (sizes > 1))
    if len(wrong):
        raise ValueError(
            f"{found.file.path}: document {found.rows[wrong[0]]:,} does not begin with the id "
            f"{begin_of_text}, as --begin-of-document says; leave that out if only some do"
        )
    return sizes > 2


def finish(
    request: ImportRequest, files: list[ForeignFile], work: ImportWork, started: float
) -> Manifest:
    """Give the files their names, and write the manifest: from then on the set is complete."""
    out, written = request.out, work.written
    text = describe_set(request, files, work, time.monotonic() - started)
    made = {entry.shard.sidecar: entry.sidecar_sha256 for entry in written}
    made |= {entry.shard.name: entry.shard.sha256 for entry in written}
    made[TOKENIZER] = hash_file(work.temporary / TOKENIZER)
    # What has the very bytes was put there by an import that was stopped.
    there = find_files_there(out)
    refuse_files(out, [name for name in there if made.get(name) != hash_file(out / name)])
    write_file(import_names_path(out), json.dumps({"files": made}) + "\n")
    commit_shards(written, out)
    commit(work.temporary / TOKENIZER, out / TOKENIZER)
    write_file(out / MANIFEST, text)
    import_names_path(out).unlink()
    return read_manifest(out)


def describe_set(
    request: ImportRequest, files: list[ForeignFile], work: ImportWork, seconds: float
) -> str:
    """The text of the manifest."""
    check_conservation(work.audit)
    named = list_sources(files)
    sha256 = work.notes.sha256
    sources = [Source(name, path.stat().st_size, sha256[name]) for name, path in named]
    rows_by_source = work.audit.rows_by_source
    work.audit.rows_by_source = {
        name: rows_by_source.get(name, 0) for name in [*rows_by_source, *(n for n, _ in named)]
    }
    policy = describe_policy(request, files)
    content = describe_content(work.temporary, sources, work.audit, policy, work.tokenizer)
    shards = [entry.shard for entry in work.written]
    sidecars = {entry.shard.sidecar: entry.sidecar_sha256 for entry in work.written}
    environment = describe_environment(sidecars, 1, seconds)
    environment["import"] = {
        key: value for key, value in asdict(work.notes).items() if key != "sha256"
    }
    return make_manifest(content, shards, work.audit.content, environment)


def describe_notes(notes: Notes) -> list[str]:
    """What the user should know about what was found on the way."""
    lines = [
        (notes.ends_added, "documents had no end-of-document token after them and got one"),
        (notes.parted, "more documents, where an end-of-document token was inside one"),
        (notes.joined, "documents continue in the next file and were joined"),
        (
            notes.without_beginning,
            "documents begin in a file that is not here, and are kept cut off",
        ),
        (notes.not_utf8, "documents are not valid UTF-8 and are kept as they are"),
    ]
    return [f"{count:,} {what}" for count, what in lines if count]
