"""The counts of a set are those that a plain loop over its documents finds."""

import hashlib
import importlib.util
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from cli import app
from prep.append import append_sources
from prep.policy import Policy
from prep.request import Request
from shards.documents import Sidecars
from shards.edit.remove import Wanted, find_wanted, remove_documents
from shards.format import Shard, read_manifest
from shards.inspect import duplicates, lengths, stats
from shards.inspect.duplicates import RepeatFinder, count_duplicates
from shards.inspect.plot import check_plot, plot_stats
from shards.inspect.stats import REMOVED, describe_json, measure_set
from shards.inspect.table import describe_stats
from shards.reader import open_shards
from shards.sidecar import ROWS_SCHEMA
from shards.tokenizer import escape_token, load_tokenizer, read_spelling
from shards.writer import ShardWriter, commit_shards
from tests.texts import make_texts, prepare_quietly, write_parquet

COPIES = ["one text, several times 北京", "another"]
FIRST = make_texts(900) + COPIES * 2
SECOND = make_texts(300, seed=1) + COPIES[:1]


@pytest.fixture(scope="module")
def finished_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stats")
    first = write_parquet(folder / "first.parquet", FIRST)
    second = write_parquet(folder / "second.parquet", SECOND)
    prepare_quietly(
        folder / "shards", first, second, shard_tokens=20_000, validation_fraction="0.2"
    )
    return folder / "shards"


def read_rows(folder: Path, split: str) -> list[dict[str, object]]:
    """Every document of a split, with its tokens."""
    shards = open_shards(folder)
    sidecars, stream = Sidecars(shards, split), shards.stream(split)
    documents = sidecars.between(0, stream.num_tokens)
    return [
        {
            "size": document.num_tokens,
            "source": document.source_file,
            "hash": document.doc_hash,
            "tokens": stream.read(document.start, document.num_tokens).tolist(),
        }
        for document in documents
    ]


@pytest.mark.parametrize("split", [None, "train", "validation"])
def test_counts_are_those_of_a_plain_loop(
    finished_set: Path, split: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "BLOCK_TOKENS", 1000)
    monkeypatch.setattr(lengths, "LONG_TOKENS", 200)
    counted = describe_json(measure_set(open_shards(finished_set), split), top=5)
    chosen = ["train", "validation"] if split is None else [split]
    rows = {name: read_rows(finished_set, name) for name in chosen}
    everything = [row for name in chosen for row in rows[name]]
    sizes = np.array([row["size"] for row in everything])
    assert {name: (a["documents"], a["tokens"]) for name, a in counted["splits"].items()} == {
        name: (len(part), sum(row["size"] for row in part)) for name, part in rows.items()
    }
    sources = Counter(row["source"] for row in everything)
    assert {entry["name"]: entry["documents"] for entry in counted["sources"]} == sources
    found = counted["lengths"]
    assert (found["min"], found["max"]) == (sizes.min(), sizes.max())
    assert found["mean"] == pytest.approx(sizes.mean())
    for percent, value in found["percentiles"].items():
        assert value == np.percentile(sizes, float(percent), method="inverted_cdf")
    for part in found["histogram"]:
        inside = sizes[(sizes >= part["first"]) & (sizes <= part["last"])]
        assert (part["documents"], part["tokens"]) == (len(inside), inside.sum())
    assert sum(part["documents"] for part in found["histogram"]) == len(sizes)
    ids = Counter(token for row in everything for token in row["tokens"])
    assert [entry["count"] for entry in counted["frequent_tokens"]] == [
        count for _, count in ids.most_common(5)
    ]
    assert counted["ids_used"] == len(ids)
    assert counted["duplicates"] == count_plainly(rows)


def count_plainly(rows: dict[str, list[dict[str, object]]]) -> dict[str, int]:
    """The copies, by a dict of all hashes."""
    hashes = Counter(row["hash"] for part in rows.values() for row in part)
    sizes = {row["hash"]: row["size"] for part in rows.values() for row in part}
    train = {row["hash"] for row in rows.get("train", [])}
    return {
        "texts": sum(count > 1 for count in hashes.values()),
        "documents": sum(count - 1 for count in hashes.values()),
        "tokens": sum((count - 1) * sizes[name] for name, count in hashes.items()),  # type: ignore[operator,misc]
        "validation_documents_in_train": sum(
            row["hash"] in train for row in rows.get("validation", [])
        ),
    }


def test_bytes_of_text_are_the_audits(finished_set: Path) -> None:
    counted = measure_set(open_shards(finished_set))
    assert counted.total.text_bytes == read_manifest(finished_set).audit["text_bytes"]
    assert sum(amount.text_bytes for amount in counted.sources.values()) == (
        counted.total.text_bytes
    )
    assert set(counted.sources) == {"first.parquet", "second.parquet"}
    assert counted.sources["second.parquet"].text_bytes == sum(len(t.encode()) for t in SECOND)


def write_documents(folder: Path, split: str, hashes: list[bytes], sizes: list[int]) -> list[Shard]:
    """Shards of documents with the given hashes and sizes, some to a file."""
    columns = [
        pa.array(sizes, pa.uint64()),
        pa.array(["f"] * len(sizes)),
        pa.array(range(len(sizes)), pa.uint64()),
        pa.nulls(len(sizes), pa.string()),
        pa.array(hashes, pa.binary(16)),
    ]
    writer = ShardWriter(folder, split, f"{split}-00000", shard_tokens=3000, token_bytes=2)
    rows = pa.RecordBatch.from_arrays(columns, schema=ROWS_SCHEMA)
    writer.append(np.zeros(sum(sizes), np.uint16), rows)
    written = writer.finish()
    commit_shards(written, folder)
    return [entry.shard for entry in written]


@pytest.mark.parametrize("capacity", [1 << 26, 700, 64])
def test_copies_are_counted_in_little_memory(
    tmp_path: Path, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "MAX_REPEATED", 30)
    monkeypatch.setattr(duplicates, "BLOCK", 16)
    random = np.random.default_rng(0)
    numbers = {
        split: random.zipf(1.3, n) % 2000 for split, n in (("train", 1500), ("validation", 400))
    }
    rows = {
        split: [
            {"hash": hashlib.sha256(bytes(str(n), "ascii")).digest()[:16], "size": 2 + int(n) % 7}
            for n in part
        ]
        for split, part in numbers.items()
    }
    # Two texts that share 64 bits, and one hash that a range of hashes is full of.
    first, second = b"\x01" * 16, b"\x01" * 8 + b"\x02" * 8
    for shared in (first, second, first, second, second):
        rows["train"].append({"hash": shared, "size": 3})
    rows["validation"].append({"hash": second, "size": 3})
    shards = [
        shard
        for split, part in rows.items()
        for shard in write_documents(
            tmp_path, split, [row["hash"] for row in part], [row["size"] for row in part]
        )
    ]
    assert len(shards) > 3
    found = count_duplicates(tmp_path, shards, capacity)
    assert vars(found) == count_plainly(rows)


def test_repeats_are_found_whatever_the_order() -> None:
    random = np.random.default_rng(1)
    keys = random.integers(0, 500, 3000).astype(np.uint64)
    finder = RepeatFinder(100)  # Far fewer than there are different keys.
    for part in np.array_split(keys, 7):
        finder.add(part)
    expected = sorted(key for key, count in Counter(keys.tolist()).items() if count > 1)
    assert finder.finish().tolist() == expected
    finder.add(np.array([3, 4, 3], np.uint64))
    assert finder.finish().tolist() == [3]


def test_removed_documents_are_told_apart(finished_set: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_set, tmp_path / "shards"))
    before = measure_set(open_shards(folder))
    digest = hashlib.sha256(COPIES[0].encode()).digest()[:16]
    found = find_wanted(open_shards(folder), Wanted(hashes=frozenset({digest})))
    remove_documents(open_shards(folder), found, keeps_places=True)
    counted = measure_set(open_shards(folder))
    assert len(found) == 3
    assert counted.sources[REMOVED].documents == 3
    assert counted.sources[REMOVED].text_bytes == 0
    assert counted.total.tokens == before.total.tokens
    assert counted.lengths.num_documents == before.lengths.num_documents - 3
    assert before.duplicates is not None
    assert counted.duplicates is not None
    assert counted.duplicates.documents == before.duplicates.documents - 2
    assert counted.total.text_bytes == read_manifest(folder).audit["text_bytes"]


def test_removed_documents_are_told_apart_in_later_versions(
    finished_set: Path, tmp_path: Path
) -> None:
    """An append keeps no list of versions with the same places, but the blank documents."""
    folder = Path(shutil.copytree(finished_set, tmp_path / "shards"))
    digest = hashlib.sha256(COPIES[0].encode()).digest()[:16]
    found = find_wanted(open_shards(folder), Wanted(hashes=frozenset({digest})))
    remove_documents(open_shards(folder), found, keeps_places=True)
    source = write_parquet(tmp_path / "third.parquet", make_texts(20, seed=2))
    policy = Policy(shard_tokens=20_000, validation_fraction="0.2")
    before = measure_set(open_shards(folder))
    append_sources(
        Request(folder, policy=policy, inputs=(str(source),), workers=1), lambda line: None
    )
    counted = measure_set(open_shards(folder))
    assert counted.sources[REMOVED].documents == 3
    assert counted.lengths.num_documents == before.lengths.num_documents + 20


def test_a_damaged_set_is_not_counted(finished_set: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_set, tmp_path / "shards"))
    shard = read_manifest(folder).shards[0]
    path = folder / shard.name
    tokens = np.fromfile(path, np.uint16)
    tokens[100] = 60_000
    tokens.tofile(path)
    with pytest.raises(ValueError, match=r"train-00000.bin: holds the id 60000; .* shards verify"):
        measure_set(open_shards(folder))
    shutil.copy(finished_set / read_manifest(folder).shards[1].sidecar, folder / shard.sidecar)
    shutil.copy(finished_set / shard.name, path)
    with pytest.raises(ValueError, match=r"docs.parquet: has 269 documents; expected 257 of"):
        measure_set(open_shards(folder))
    with pytest.raises(ValueError, match="--split is 'test'; expected one of train, validation"):
        measure_set(open_shards(finished_set), "test")


def test_tokens_stand_for_the_bytes_of_their_text(finished_set: Path) -> None:
    tokenizer = load_tokenizer(finished_set / "tokenizer.json")
    contents = read_spelling(tokenizer, 50256).inner
    assert len(contents) == 50257
    assert contents[50256] == b""
    for text in [*make_texts(50), "\x00\x7f\xa0\xad é\u200b🙂", bytes(range(128)).decode()]:
        ids = tokenizer.encode(text).ids
        assert b"".join(contents[i] for i in ids) == text.encode()
    assert escape_token(b"\xf0\x9f") == "\\xf0\\x9f"
    assert escape_token("a\\\n\u200b".encode()) == "a\\\\\\n\\u200b"


def test_the_table_shows_what_was_counted(finished_set: Path) -> None:
    counted = measure_set(open_shards(finished_set))
    lines = list(describe_stats(counted, top=3))
    text = "\n".join(lines)
    assert "first.parquet" in text
    times = Counter([*FIRST, *SECOND]).values()
    repeated = sum(count > 1 for count in times)
    assert f"copies: {sum(times) - len(times)} documents" in text
    assert f"repeat one of {repeated} texts exactly" in text
    assert f"{counted.total.text_bytes / counted.total.tokens:.3f}" in text
    assert f"{counted.total.tokens:,}" in text
    assert sum('"' in line for line in lines) == 3
    assert max(map(len, lines)) <= 100


def test_the_command_prints_json_and_draws(finished_set: Path, tmp_path: Path) -> None:
    picture = tmp_path / "stats.png"
    arguments = ["shards", "stats", str(finished_set), "--json", "--plot", str(picture)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    counted = json.loads(result.stdout)
    assert counted["dataset_id"] == read_manifest(finished_set).dataset_id
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000


def test_any_set_can_be_drawn(tmp_path: Path, finished_set: Path) -> None:
    """One document; names that look like formulas; characters that no font has."""
    texts = [" $x^2$ $ 北京 \u200b\u0000"]
    source = write_parquet(tmp_path / ("$a$_" + "long" * 20 + ".parquet"), texts)
    prepare_quietly(tmp_path / "shards", source, validation_fraction="0")
    plot_stats(measure_set(open_shards(tmp_path / "shards")), tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 10_000
    empty = measure_set(open_shards(tmp_path / "shards"), "validation")
    assert list(describe_stats(empty, top=3))
    with pytest.raises(ValueError, match="there are no documents to draw"):
        plot_stats(empty, tmp_path / "none.png")


def test_a_picture_that_cannot_be_drawn_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"stats.jpg: expected a file name that ends in .png"):
        check_plot(tmp_path / "stats.jpg")
    with pytest.raises(ValueError, match="there is no folder"):
        check_plot(tmp_path / "nowhere" / "stats.png")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'velocitylm\[plot\]'"):
        check_plot(tmp_path / "stats.png")
