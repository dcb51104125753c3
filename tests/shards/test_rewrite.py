"""A shard written again: cut or blanked, it is what was asked for, token by token."""

import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.documents import read_pieces
from shards.edit.rewrite import Rewriter, Rewritten
from shards.format import Shard
from shards.inspect.verify import verify_sidecar, verify_tokens
from shards.sidecar import BLANK_HASH, ROWS_SCHEMA, SIDECAR_SCHEMA, count_tokens
from shards.tokenizer import Spelling, load_spelling, load_tokenizer
from shards.writer import ShardWriter, WrittenShard
from tests.texts import make_texts, prepare_quietly, write_parquet


@pytest.fixture(scope="module")
def finished_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    source = write_parquet(folder / "source.parquet", [*make_texts(2000)])
    prepare_quietly(folder / "shards", source, validation_fraction="0.1")
    return folder / "shards"


def load_gpt2(folder: Path) -> Spelling:
    return load_spelling(folder / "tokenizer.json", 50256, None)


def rewrite(
    folder: Path, work: Path, rows: list[int], keeps_places: bool
) -> tuple[Shard, Rewritten]:
    from shards.format import read_manifest

    shard = read_manifest(folder).shards[0]
    rewriter = Rewriter(folder, work, load_gpt2(folder), keeps_places)
    return shard, rewriter.rewrite(shard, np.array(rows, np.int64), "train-00000.r1.bin", None)


def read_documents(folder: Path, shard: Shard) -> list[tuple[list[int], dict[str, object]]]:
    """Each document's ids and row, the plain way."""
    tokens = np.fromfile(folder / shard.name, "<u2")
    rows = pq.read_table(folder / shard.sidecar).to_pylist()
    return [(tokens[r["start"] : r["start"] + r["num_tokens"]].tolist(), r) for r in rows]


def without_start(row: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in row.items() if key != "start"}


def choose(generator: random.Random, count: int, kind: str) -> list[int]:
    if kind == "runs":
        return [*range(5), *range(40, 90), *range(count - 7, count)]
    share = {"few": 0.002, "half": 0.5, "nearly all": 0.995}[kind]
    return sorted(generator.sample(range(count), max(1, int(count * share))))


@pytest.mark.parametrize("kind", ["few", "runs", "half", "nearly all"])
@pytest.mark.parametrize("piece_tokens", [1 << 21, 700])
def test_cut_and_blank_are_what_lists_give(
    finished_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    piece_tokens: int,
) -> None:
    monkeypatch.setattr("shards.documents.PIECE_TOKENS", piece_tokens)
    tokenizer = load_tokenizer(finished_set / "tokenizer.json")
    for keeps_places in (False, True):
        work = tmp_path / str(keeps_places)
        work.mkdir()
        shutil.copy(finished_set / "tokenizer.json", work)
        rows = choose(random.Random(kind), 1700, kind)
        shard, result = rewrite(finished_set, work, rows, keeps_places)
        before = read_documents(finished_set, shard)
        assert result.written
        after = read_documents(work, result.written.shard)

        removed = set(rows)
        texts = [tokenizer.decode(before[row][0][:-1], skip_special_tokens=False) for row in rows]
        assert result.num_documents == len(rows)
        assert result.num_tokens == sum(len(before[row][0]) for row in rows)
        assert result.text_bytes == sum(len(text.encode()) for text in texts)
        if keeps_places:
            for place, (old, new) in enumerate(zip(before, after, strict=True)):
                if place not in removed:
                    assert old == new
                    continue
                assert new[0] == [50256] * len(old[0])
                assert new[1] == old[1] | {"url": None, "doc_hash": BLANK_HASH}
        else:
            kept = [entry for place, entry in enumerate(before) if place not in removed]
            assert [ids for ids, _ in after] == [ids for ids, _ in kept]
            assert [without_start(row) for _, row in after] == [
                without_start(row) for _, row in kept
            ]
        check_whole(work, result.written)


def check_whole(work: Path, written: WrittenShard) -> None:
    """Sidecar, checksums and hashes of a rewritten shard, as verify sees them."""
    from shards.format import Manifest

    content = {"tokenizer": {"vocab_size": 50257, "end_of_text": 50256}}
    hashes = {written.shard.sidecar: written.sidecar_sha256}
    manifest = Manifest("", content, {}, {"sidecar_sha256": hashes})
    fault, ends = verify_sidecar(work, written.shard, manifest)
    assert fault is None
    assert verify_tokens(work, written.shard, manifest, ends) is None
    assert pq.read_schema(work / written.shard.sidecar).equals(SIDECAR_SCHEMA)


def test_a_cut_shard_is_the_shard_of_the_texts_that_stay(
    finished_set: Path, tmp_path: Path
) -> None:
    """Byte for byte what the writer makes of the same documents given to it alone."""
    rows = choose(random.Random(1), 1700, "half")
    shard, result = rewrite(finished_set, tmp_path, rows, keeps_places=False)
    (tmp_path / "straight").mkdir()
    writer = ShardWriter(tmp_path / "straight", "train", "train-00000.r1", 1 << 40, 2)
    for first, tokens, batch in read_pieces(finished_set, shard):
        ends = np.cumsum(count_tokens(batch))
        for place, end in enumerate(ends.tolist()):
            if first + place not in set(rows):
                start = int(ends[place - 1]) if place else 0
                writer.append(tokens[start:end], batch.slice(place, 1))
    [straight] = writer.finish()
    assert result.written
    assert (straight.shard, straight.sidecar_sha256) == (
        result.written.shard,
        result.written.sidecar_sha256,
    )


def test_a_shard_of_which_nothing_is_left_is_none(finished_set: Path, tmp_path: Path) -> None:
    count = len(pq.read_table(finished_set / "train-00000.docs.parquet"))
    _, result = rewrite(finished_set, tmp_path, list(range(count)), keeps_places=False)
    assert result.written is None
    assert list(tmp_path.iterdir()) == []


def test_more_documents_than_a_row_group(finished_set: Path, tmp_path: Path) -> None:
    """Places behind the first row group are counted on."""
    count = 150_000
    sizes = np.random.default_rng(0).integers(1, 5, count)
    rows = make_rows(sizes)
    writer = ShardWriter(tmp_path, "train", "train-00000", 1 << 40, 2)
    tokens = np.arange(sizes.sum()).astype(np.uint16) % 50_000
    writer.append(tokens, rows)
    [written] = writer.finish()
    removed = np.arange(1, count, 3)
    (tmp_path / "work").mkdir()
    rewriter = Rewriter(tmp_path, tmp_path / "work", load_gpt2(finished_set), False)
    result = rewriter.rewrite(written.shard, removed, "train-00000.bin", written.sidecar_sha256)
    is_kept = np.ones(count, np.bool_)
    is_kept[removed] = False
    assert result.written
    assert result.written.shard.num_documents == 100_000
    expected = tokens[np.repeat(is_kept, sizes)]
    assert (np.fromfile(tmp_path / "work/train-00000.bin", "<u2") == expected).all()
    kept = pq.read_table(tmp_path / "work/train-00000.docs.parquet")["source_row"].to_numpy()
    assert (kept == np.flatnonzero(is_kept)).all()


def make_rows(sizes: np.ndarray) -> pa.RecordBatch:
    count = len(sizes)
    columns = [
        pa.array(sizes.astype(np.uint64)),
        pa.array(["f"] * count),
        pa.array(np.arange(count).astype(np.uint64)),
        pa.array([None] * count, pa.string()),
        pa.array([n.to_bytes(16, "big") for n in range(1, count + 1)], pa.binary(16)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=ROWS_SCHEMA)


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00000.docs.parquet"])
def test_a_damaged_shard_gets_no_new_checksum(
    finished_set: Path, tmp_path: Path, name: str
) -> None:
    from shards.format import read_manifest

    folder = Path(shutil.copytree(finished_set, tmp_path / "shards"))
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    manifest = read_manifest(folder)
    shard = manifest.shards[0]
    (tmp_path / "work").mkdir()
    rewriter = Rewriter(folder, tmp_path / "work", load_gpt2(folder), keeps_places=False)
    with pytest.raises(ValueError, match=rf"{name}: is missing or damaged, and nothing was"):
        rewriter.rewrite(shard, np.array([3]), "x.bin", manifest.sidecar_sha256(shard))
