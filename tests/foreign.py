"""Token files of nanoGPT, llm.c and Megatron, written and read from the published layouts."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prep.foreign.request import ImportRequest
from prep.foreign.run import import_tokens
from shards.format import Manifest, read_manifest
from shards.inspect.verify import verify_shards
from shards.reader import open_shards
from tests.texts import make_texts, prepare_quietly, write_parquet
from tests.tiktoken_gpt2 import make_encoding

END = 50256
# One document that is long, one with a character of four bytes, one that spells <|endoftext|>.
TEXTS = [*make_texts(150), "long " * 3000 + "end", "🙂", "<|endoftext|>", *make_texts(60, seed=5)]


@pytest.fixture(scope="module")
def ids() -> list[list[int]]:
    tiktoken = make_encoding()
    return [tiktoken.encode_ordinary(text) for text in TEXTS]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What prep makes of the texts."""
    folder = tmp_path_factory.mktemp("foreign")
    source = write_parquet(folder / "texts.parquet", list(TEXTS))
    prepare_quietly(folder / "shards", source, validation_fraction="0")
    return folder / "shards"


def write_nanogpt(path: Path, ids: list[list[int]]) -> Path:
    np.array([i for document in ids for i in [*document, END]], "<u2").tofile(path)
    return path


def write_llmc(path: Path, tokens: list[int], magic: int = 20240520, version: int = 1) -> Path:
    header = struct.pack("<256i", magic, version, len(tokens), *[0] * 253)
    path.write_bytes(header + np.array(tokens, "<u2").tobytes())
    return path


def write_megatron(
    prefix: Path, documents: list[list[list[int]]], dtype: str = "<u2", code: int = 8
) -> Path:
    """Documents of sequences, as Megatron's builder writes them."""
    sequences = [sequence for document in documents for sequence in document]
    sizes = [len(sequence) for sequence in sequences]
    bounds = np.cumsum([0, *map(len, documents)])
    pointers = (np.cumsum([0, *sizes]) * np.dtype(dtype).itemsize)[:-1]
    tokens = np.array([i for sequence in sequences for i in sequence], dtype)
    tokens.tofile(f"{prefix}.bin")
    Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(sizes), len(bounds))
        + np.array(sizes, "<i4").tobytes()
        + np.array(pointers, "<i8").tobytes()
        + np.array(bounds, "<i8").tobytes()
    )
    return prefix


def read_megatron(prefix: Path) -> list[list[int]]:
    """The documents of PREFIX.bin and PREFIX.idx."""
    raw = Path(f"{prefix}.idx").read_bytes()
    assert raw[:9] == b"MMIDIDX\x00\x00"
    version, code, num_sequences, num_bounds = struct.unpack_from("<QBQQ", raw, 9)
    assert (version, code) == (1, 8)
    sizes = np.frombuffer(raw, "<i4", num_sequences, 34)
    pointers = np.frombuffer(raw, "<i8", num_sequences, 34 + 4 * num_sequences)
    bounds = np.frombuffer(raw, "<i8", num_bounds, 34 + 12 * num_sequences)
    assert len(raw) == 34 + 12 * num_sequences + 8 * num_bounds
    content = Path(f"{prefix}.bin").read_bytes()
    assert len(content) == 2 * sizes.sum()
    return [
        [
            i
            for sequence in range(first, last)
            for i in np.frombuffer(content, "<u2", sizes[sequence], pointers[sequence]).tolist()
        ]
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]


def bring_in(out: Path, *files: Path, **options: Any) -> Manifest:
    """Import files; what is said goes nowhere."""
    request = ImportRequest(out, tuple(map(str, files)), **options)
    return import_tokens(request, lambda line: None)


def read_documents(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    """The rows of a split."""
    manifest = read_manifest(folder)
    tables = [pq.read_table(folder / shard.sidecar) for shard in manifest.split(split)]
    return list(pa.concat_tables(tables).to_pylist()) if tables else []


def read_tokens(folder: Path, split: str = "train") -> list[int]:
    stream = open_shards(folder).stream(split)
    return stream.read(0, stream.num_tokens).tolist()


def check_same(folder: Path, prepared: Path, source: str) -> None:
    """The set is whole, and holds what prep made, but for names and URLs."""
    assert [fault for _, fault in verify_shards(folder) if fault] == []
    assert read_tokens(folder) == read_tokens(prepared)
    found, expected = read_documents(folder), read_documents(prepared)
    for key in ("start", "num_tokens", "source_row", "doc_hash"):
        assert [row[key] for row in found] == [row[key] for row in expected]
    assert {row["source_file"] for row in found} == {source}
    assert {row["url"] for row in found} == {None}
    audit, other = read_manifest(folder).audit, read_manifest(prepared).audit
    assert audit["text_bytes"] == other["text_bytes"]
    assert audit["documents_read"] == audit["train"] == len(TEXTS)


def damage(path: Path, change: Callable[[bytearray], object]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
