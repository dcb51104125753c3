"""Text to token shards: our whole pipeline, the same with tiktoken, tiktoken alone, datasets.map.

velocity            prep.run.prepare, one worker: parquet -> committed shards, sidecars, manifest
tiktoken_pipeline   the same, with tiktoken in place of our encoder
tiktoken            parquet -> encode_ordinary -> one .bin, and nothing else that ours does
datasets            load_dataset -> map with `tokenizers`, batched -> one .bin, as in nanoGPT

All read the same parquet file on the same number of threads, load their tokenizer within the
measured time, and must give the same tokens.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import (
    OURS,
    Engine,
    Measured,
    make_parser,
    print_result,
    run_script,
    say,
    take_turns,
)
from prep.policy import Policy
from prep.python_docs import write_python_docs
from prep.readers.documents import Piece
from prep.readers.formats import read_documents
from prep.request import Request
from prep.run import prepare
from prep.sources.local import find_files
from prep.tokenizer import encoder
from prep.tokenizer.encoder import Encoder, Ids, build_encoder
from prep.tokenizer.gpt2 import END_OF_TEXT, build_gpt2_json
from shards.reader import open_shards
from shards.tokenizer import load_tokenizer, parse_tokenizer

COLUMN = "content"
BATCH_DOCUMENTS = 1000
PACKAGES = ("fastokens", "tokenizers", "tiktoken", "datasets", "numpy", "pyarrow")

Tokens = npt.NDArray[np.uint16]


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


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = make_parser("Text to token shards, beside tiktoken and datasets.map.")
    add_text_options(parser, megabytes=4.0)
    parser.add_argument("--threads", type=int, default=1, help="of every engine's tokenizer")
    return parser.parse_args()


def main() -> None:
    """Measure, compare the tokens, print the line."""
    options = parse_arguments()
    # Read by `tokenizers` at its first batch.
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    pa.set_cpu_count(options.threads)
    with tempfile.TemporaryDirectory(prefix="benchmark-prep-") as name:
        scratch = Path(name)
        text = write_text(scratch, options)
        say(f"{text.num_documents:,} documents, {text.num_bytes / 1e6:.1f} MB of text")
        engines = [
            Engine(OURS, (), lambda: start_velocity(text, scratch)),
            Engine(
                "tiktoken_pipeline", ("tiktoken",), lambda: start_tiktoken_pipeline(text, scratch)
            ),
            Engine("tiktoken", ("tiktoken",), lambda: start_tiktoken(text, scratch, options)),
            Engine("datasets", ("datasets",), lambda: start_datasets(text, scratch)),
        ]
        num_tokens: list[int] = []

        def check(outputs: Mapping[str, Tokens]) -> None:
            compare_tokens(outputs)
            num_tokens.append(len(outputs[OURS]))

        results = take_turns(engines, options, check)
    work = {
        "documents": text.num_documents,
        "text_bytes": text.num_bytes,
        "tokens": num_tokens[0],
        "passes_over_the_input": text.num_passes,
    }
    # A difference would have ended the run.
    checks = {"tokens_equal": True if len(results.rounds) > 1 else None}
    print_result("prep", options, work, results, checks, PACKAGES)


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


def start_velocity(
    text: Text, scratch: Path, load: Callable[[Path, str], Any] = Encoder
) -> Callable[[], Measured]:
    """Our pipeline; everything goes to train, so that documents keep their order."""
    out = scratch / "shards"
    request = Request(
        out, policy=Policy(validation_fraction="0"), inputs=(str(text.path),), workers=1
    )

    def work() -> None:
        forget_encoders()
        with mock.patch.object(encoder, "Encoder", load):
            prepare(request, say=lambda line: None)
        forget_encoders()

    def read() -> Tokens:
        stream = open_shards(out).stream("train")
        return stream.read(0, stream.num_tokens)

    return lambda: time_work(text, work, read, out)


def forget_encoders() -> None:
    """Make the next run load its tokenizers afresh, with empty caches, as a first run does."""
    build_encoder.cache_clear()
    parse_tokenizer.cache_clear()


def start_tiktoken_pipeline(text: Text, scratch: Path) -> Callable[[], Measured]:
    """Our pipeline with tiktoken, and nothing else changed."""
    from tests.tiktoken_gpt2 import make_encoding, make_vocab

    make_vocab()

    class TiktokenEncoder(Encoder):
        def __init__(self, tokenizer_json: Path, name: str) -> None:
            super().__init__(tokenizer_json, "tokenizers")
            self.encoding = make_encoding()

        def _encode_strings(self, texts: list[str]) -> tuple[Ids, npt.NDArray[np.int64]]:
            ids = [np.array(self.encoding.encode_ordinary(text), np.uint32) for text in texts]
            return np.concatenate(ids), np.fromiter(map(len, ids), np.int64, len(ids))

    return start_velocity(text, scratch, TiktokenEncoder)


def start_tiktoken(
    text: Text, scratch: Path, options: argparse.Namespace
) -> Callable[[], Measured]:
    """tiktoken, with as little around it as possible."""
    from tests.tiktoken_gpt2 import make_encoding, make_vocab

    make_vocab()
    out = scratch / "tiktoken.bin"

    def encode(encoding: Any, texts: list[str]) -> list[list[int]]:
        if options.threads == 1:
            return [encoding.encode_ordinary(text) for text in texts]
        found: list[list[int]] = encoding.encode_ordinary_batch(texts, num_threads=options.threads)
        return found

    def work() -> None:
        encoding = make_encoding()
        with open(out, "wb") as file, pq.ParquetFile(text.path) as parquet:
            for batch in parquet.iter_batches(BATCH_DOCUMENTS, columns=[COLUMN], use_threads=False):
                join_documents(encode(encoding, batch.column(COLUMN).to_pylist())).tofile(file)

    return lambda: time_work(text, work, lambda: np.fromfile(out, np.uint16), out)


def join_documents(documents: Sequence[list[int]]) -> Tokens:
    """The documents one after another, each followed by <|endoftext|>."""
    for document in documents:
        document.append(END_OF_TEXT)
    num_tokens = sum(map(len, documents))
    return np.fromiter(chain.from_iterable(documents), np.uint16, num_tokens)


def start_datasets(text: Text, scratch: Path) -> Callable[[], Measured]:
    """load_dataset, map, and the ids copied into one array on disk."""
    import datasets

    datasets.disable_progress_bars()
    (scratch / "tokenizer.json").write_text(build_gpt2_json(), encoding="utf-8")
    cache = scratch / "datasets"
    out = scratch / "datasets.bin"

    def encode(
        batch: Mapping[str, list[str]], tokenizer: Any
    ) -> dict[str, list[list[int]] | list[int]]:
        encodings = tokenizer.encode_batch_fast(batch[COLUMN], add_special_tokens=False)
        ids = [[*encoding.ids, END_OF_TEXT] for encoding in encodings]
        return {"ids": ids, "len": [len(document) for document in ids]}

    def work() -> None:
        dataset = datasets.load_dataset(
            "parquet", data_files=str(text.path), split="train", cache_dir=str(cache)
        )
        tokenizer = load_tokenizer(scratch / "tokenizer.json")
        encoded = dataset.map(
            encode, batched=True, remove_columns=[COLUMN], fn_kwargs={"tokenizer": tokenizer}
        )
        tokens = np.memmap(out, np.uint16, "w+", shape=(sum(encoded["len"]),))
        position = 0
        for batch in encoded.with_format("numpy").iter(BATCH_DOCUMENTS):
            ids = np.concatenate(batch["ids"])
            tokens[position : position + len(ids)] = ids
            position += len(ids)
        tokens.flush()

    return lambda: time_work(text, work, lambda: np.fromfile(out, np.uint16), out, cache)


def time_work(
    text: Text, work: Callable[[], None], read: Callable[[], Tokens], *made: Path
) -> Measured:
    """Time the work, read the tokens that it made, and remove what it left on disk."""
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    tokens = read()
    for path in made:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    figures = {
        "megabytes_per_second": text.num_bytes / 1e6 / seconds,
        "tokens_per_second": len(tokens) / seconds,
    }
    return Measured(figures, tokens)


def compare_tokens(outputs: Mapping[str, Tokens]) -> None:
    """Raise ValueError with the first place where a peer's tokens differ from ours."""
    ours = outputs[OURS]
    for name, tokens in outputs.items():
        if np.array_equal(tokens, ours):
            continue
        shared = min(len(tokens), len(ours))
        different = np.flatnonzero(tokens[:shared] != ours[:shared])
        place = int(different[0]) if len(different) else shared
        raise ValueError(
            f"{name} made {len(tokens):,} tokens, {OURS} {len(ours):,}, and they differ from token "
            f"{place:,} on; one of them encodes wrongly, so no figures are given"
        )


if __name__ == "__main__":
    run_script(main)
