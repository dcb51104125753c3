"""Shards on disk: what is written is read back, and what is damaged is named."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.format import read_manifest
from shards.inspect.verify import verify_shards
from shards.reader import TokenStream, open_shards
from shards.sidecar import ROWS_SCHEMA
from shards.writer import ShardWriter, commit_shards
from tests.texts import make_texts, prepare_quietly, write_parquet


@pytest.fixture(scope="module")
def finished_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    source = write_parquet(folder / "source.parquet", make_texts(3000))
    prepare_quietly(folder / "shards", source, shard_tokens=100_000, validation_fraction="0.1")
    return folder / "shards"


@pytest.fixture
def shards_copy(finished_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_set, tmp_path / "shards"))


def make_rows(sizes: list[int]) -> pa.RecordBatch:
    rows = [
        {"num_tokens": size, "source_file": "f", "source_row": n, "doc_hash": bytes([n % 256] * 16)}
        for n, size in enumerate(sizes)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=ROWS_SCHEMA)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_documents_stay_whole_and_batches_change_nothing(tmp_path: Path, batch: int) -> None:
    sizes = [3, 1, 40, 2, 2, 2, 9, 10, 11, 1]  # One of 40 tokens, where a shard takes 10.
    tokens = np.arange(sum(sizes), dtype=np.uint16)
    writer = ShardWriter(tmp_path, "train", "train-00000", shard_tokens=10, token_bytes=2)
    ends = np.cumsum(sizes)
    for first in range(0, len(sizes), batch):
        last = min(first + batch, len(sizes))
        start = int(ends[first - 1]) if first else 0
        writer.append(tokens[start : ends[last - 1]], make_rows(sizes[first:last]))
    written = writer.finish()
    commit_shards(written, tmp_path)
    shards = [entry.shard for entry in written]
    assert [shard.num_tokens for shard in shards] == [4, 40, 6, 9, 10, 11, 1]
    assert [shard.name for shard in shards][:2] == ["train-00000.bin", "train-00000-001.bin"]
    assert (TokenStream(tmp_path, shards, vocab_size=100).read(0, sum(sizes)) == tokens).all()


def test_a_bin_is_plain_uint16(finished_set: Path) -> None:
    shard = read_manifest(finished_set).shards[0]
    plain = np.memmap(finished_set / shard.name, np.uint16)
    assert len(plain) == shard.num_tokens
    assert plain[-1] == 50256


def test_windows_cross_files(finished_set: Path) -> None:
    shards = open_shards(finished_set)
    stream = shards.stream("train")
    assert len(stream.shards) > 1
    everything = np.concatenate([stream.read(0, stream.num_tokens)])
    starts = np.array([0, int(stream.shard_starts[1]) - 5, stream.num_tokens - 11])
    windows = stream.windows(starts, 11)
    for start, window in zip(starts.tolist(), windows, strict=True):
        assert window.tolist() == everything[start : start + 11].tolist()
    with pytest.raises(ValueError, match="the split has"):
        stream.read(stream.num_tokens - 10, 11)


def test_a_whole_set_verifies(finished_set: Path) -> None:
    assert [fault for _, fault in verify_shards(finished_set) if fault] == []


def test_verify_names_the_file_and_place_of_a_flipped_byte(shards_copy: Path) -> None:
    shard = read_manifest(shards_copy).shards[0]
    with open(shards_copy / shard.name, "r+b") as file:
        file.seek(1234)
        byte = file.read(1)
        file.seek(1234)
        file.write(bytes([byte[0] ^ 1]))
    faults = {name: fault for name, fault in verify_shards(shards_copy) if fault}
    assert list(faults) == [shard.name]
    assert "damaged in bytes 0 to 1,048,576 (tokens 0 to 524,288)" in faults[shard.name]


def test_verify_notices_every_file(shards_copy: Path) -> None:
    manifest = read_manifest(shards_copy)
    first, second = manifest.shards[:2]
    (shards_copy / first.name).write_bytes((shards_copy / first.name).read_bytes()[:-2])
    sidecar = shards_copy / second.sidecar
    pq.write_table(pq.read_table(sidecar).slice(1), sidecar)
    (shards_copy / "tokenizer.json").unlink()
    faults = {name: fault for name, fault in verify_shards(shards_copy) if fault}
    assert set(faults) == {first.name, second.sidecar, "tokenizer.json"}


def test_a_missing_or_short_shard_is_refused_on_reading(shards_copy: Path) -> None:
    shard = read_manifest(shards_copy).shards[0]
    (shards_copy / shard.name).write_bytes(b"123")
    with pytest.raises(ValueError, match=r"train-00000.bin has 3 bytes; expected .* verify"):
        open_shards(shards_copy).stream("train").read(0, 1)
    (shards_copy / shard.name).unlink()
    with pytest.raises(ValueError, match=r"train-00000.bin is missing"):
        open_shards(shards_copy).stream("train").read(0, 1)


def test_folders_without_a_set_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder; make the shards with: velocity prep"):
        open_shards(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="so this is not a set of shards"):
        open_shards(tmp_path)
    (tmp_path / ".prep").mkdir()
    with pytest.raises(ValueError, match="prep has not finished here"):
        open_shards(tmp_path)
