"""The text that benchmarks of prep read: Python's documentation or the input's, repeated."""

import argparse
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prep.python_docs import write_python_docs
from prep.readers.documents import Piece
from prep.readers.formats import read_documents
from prep.sources.local import find_files

COLUMN = "content"


@dataclass(frozen=True)
class Text:
    """The text that every engine reads, as one parquet file."""

    path: Path
    num_documents: int
    num_bytes: int
    # How often the documents repeat; repeated words are easy for an engine with a cache.
    num_passes: int


def add_text_options(parser: argparse.ArgumentParser, megabytes: float) -> None:
    """The options that choose the text, and how much of it by default."""
    parser.add_argument(
        "--input",
        type=Path,
        action="append",
        help="text instead of Python's documentation: a file or folder that prep reads",
    )
    parser.add_argument("--text-column", default=COLUMN, help="of the input, as for prep")
    parser.add_argument("--megabytes", type=float, default=megabytes, help="of text, about")


def write_text(scratch: Path, options: argparse.Namespace) -> Text:
    """Write the input's documents to one parquet file, repeated until it is large enough.

    It is compressed with zstd, in row groups of 1,000 documents.
    """
    paths = find_files([str(entry) for entry in options.input or ()])[0]
    if not paths:
        paths = [scratch / "python-docs.jsonl"]
        write_python_docs(paths[0])
    column = options.text_column if options.input else COLUMN
    path = scratch / "text.parquet"
    num_documents = num_bytes = num_passes = 0
    schema = pa.schema([(COLUMN, pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while num_bytes < options.megabytes * 1e6:
            num_passes += 1
            before = num_bytes
            for texts in read_batches(paths, column):
                sizes = np.cumsum([len(text.encode("utf-8")) for text in texts])
                count = int(np.searchsorted(sizes, options.megabytes * 1e6 - num_bytes)) + 1
                table = pa.table({COLUMN: pa.array(texts[:count], pa.string())})
                writer.write_table(table)  # A row group, of 1,000 documents as in RefinedWeb.
                num_documents += len(table)
                num_bytes += int(sizes[len(table) - 1])
                if num_bytes >= options.megabytes * 1e6:
                    break
            if num_bytes == before:
                raise ValueError(f"{paths[0]}: no text in it; give --input files with text")
    return Text(path, num_documents, num_bytes, num_passes)


def read_batches(paths: Iterable[Path], column: str) -> Iterator[list[str]]:
    """The texts of the files, 1,000 at a time; null and empty ones are left out."""
    for path in paths:
        for documents in read_documents(Piece(str(path), path.name), column):
            if texts := [text for text in documents.texts.to_pylist() if text]:
                yield texts


def copy_files(inputs: list[Path], folder: Path, passes: int) -> None:
    """Copy the input's files for each pass: prep reads a file once, whatever leads to it."""
    folder.mkdir()
    for number in range(passes):
        for path in find_files([str(entry) for entry in inputs])[0]:
            shutil.copyfile(path, folder / f"{number:04d}-{path.name}")
