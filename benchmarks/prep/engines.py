"""What takes turns in `benchmarks.prep`: our pipeline, tiktoken's two, and datasets.map."""

import argparse
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from benchmarks.measure import Measured
from benchmarks.prep.texts import COLUMN, Text
from prep.policy import Policy
from prep.request import Request
from prep.run import prepare
from prep.tokenizer import encoder
from prep.tokenizer.encoder import Encoder, Ids, build_encoder
from prep.tokenizer.gpt2 import END_OF_TEXT, build_gpt2_json
from shards.reader import open_shards
from shards.tokenizer import load_tokenizer, parse_tokenizer

BATCH_DOCUMENTS = 1000
Tokens = npt.NDArray[np.uint16]


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
