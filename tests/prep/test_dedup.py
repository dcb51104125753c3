"""--dedup exact: of equal texts the first stays, whoever did the work and whatever was killed."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from prep.copies.exact import ENTRY, Copies, PlacedShard, find_copies, pair_copies
from prep.units.receipts import Audit
from shards.format import Manifest, read_manifest
from shards.inspect.verify import verify_shards
from shards.reader import open_shards
from tests.commands import velocity
from tests.servers.killed import hash_files, kill_often
from tests.texts import (
    make_texts,
    prepare_quietly,
    prepare_until,
    read_texts,
    set_bytes,
    write_jsonl,
    write_parquet,
)

OPTIONS = {"validation_fraction": "0.2", "unit_bytes": 14000, "shard_tokens": 3000}


def write_source(folder: Path) -> dict[str, list[str | None]]:
    """Files with copies within a file and across them, one that only has copies, and one text
    that stands everywhere; in plan order."""
    generator = random.Random(7)
    pool = make_texts(260, seed=11, mean_words=40)
    files: dict[str, list[str | None]] = {}
    for number in range(4):
        texts: list[str | None] = [*make_texts(80, seed=number), *generator.choices(pool, k=120)]
        texts += ["the one text"] * 20 + [None, "", "<|endoftext|>", "<|endoftext|>"]
        generator.shuffle(texts)
        files[f"{number}.parquet"] = texts
    seen = [text for texts in files.values() for text in texts]
    files["4.jsonl"] = generator.choices(seen, k=150)
    files["5.jsonl"] = [*make_texts(100, seed=5)]
    for name, texts in files.items():
        write = write_parquet if name.endswith(".parquet") else write_jsonl
        write(folder / name, texts)
    return files


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_source(folder)
    return folder


@pytest.fixture(scope="module")
def files(source: Path) -> dict[str, list[str | None]]:
    return write_source(source)


@pytest.fixture(scope="module")
def straight(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "shards"
    prepare_quietly(out, source, dedup="exact", **OPTIONS)
    return out


def read_documents(folder: Path) -> dict[tuple[str, int], str]:
    """Every document by file and row."""
    return {(file, row): text for (_, file, row), text in read_texts(folder).items()}


def keep_first(files: dict[str, list[str | None]]) -> dict[tuple[str, int], str]:
    """The reference: a set of texts."""
    seen: set[str] = set()
    kept = {}
    for name, texts in files.items():
        for row, text in enumerate(texts):
            if text and text not in seen:
                seen.add(text)
                kept[name, row] = text
    return kept


def check_whole(out: Path, manifest: Manifest) -> None:
    assert [entry for entry in verify_shards(out) if entry[1] is not None] == []
    named = {name for shard in manifest.shards for name in (shard.name, shard.sidecar)}
    assert set(set_bytes(out)) == named | {"tokenizer.json"}
    assert not (out / ".prep/dedup").exists()
    assert list((out / ".prep/tmp").iterdir()) == []


def test_the_first_of_each_text_stays(straight: Path, files: dict[str, list[str | None]]) -> None:
    expected = keep_first(files)
    assert read_documents(straight) == expected
    manifest = read_manifest(straight)
    check_whole(straight, manifest)
    audit = Audit(**manifest.audit)
    texts = [text for texts in files.values() for text in texts]
    assert audit.documents_read == len(texts)
    assert audit.dropped == {
        "null": texts.count(None),
        "empty": texts.count(""),
        "duplicate": len([text for text in texts if text]) - len(expected),
    }
    assert audit.train + audit.validation == len(expected)
    assert audit.text_bytes == sum(len(text.encode()) for text in expected.values())
    assert manifest.content["policy"]["dedup"] == "exact"
    # The unit of copies alone has no shard.
    assert {name for name, _ in expected} == set(files) - {"4.jsonl"}
    assert all(".r" not in shard.name for shard in manifest.shards)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_no_byte(
    source: Path, straight: Path, tmp_path: Path, workers: int
) -> None:
    manifest = prepare_quietly(
        tmp_path / "shards", source, dedup="exact", workers=workers, **OPTIONS
    )
    assert manifest.dataset_id == read_manifest(straight).dataset_id
    assert set_bytes(tmp_path / "shards") == set_bytes(straight)


def test_it_is_the_set_of_the_texts_that_stay(
    straight: Path, files: dict[str, list[str | None]], tmp_path: Path
) -> None:
    """The same tokens in the same order as from a source that has no copies."""
    kept = keep_first(files)
    (tmp_path / "source").mkdir()
    for name in files:
        texts: list[str | None] = [text for (file, _), text in kept.items() if file == name]
        if texts:
            write_jsonl(tmp_path / "source" / f"{name[0]}.jsonl", texts)
    prepare_quietly(tmp_path / "shards", tmp_path / "source", **OPTIONS)
    for split in ("train", "validation"):
        one, other = (open_shards(path).stream(split) for path in (straight, tmp_path / "shards"))
        assert (one.read(0, one.num_tokens) == other.read(0, other.num_tokens)).all()


def stop_before_dedup(out: Path, source: Path) -> None:
    """A set whose units are done, and nothing else."""
    prepare_until("prep.manifest.drop_copies", out, source, dedup="exact", **OPTIONS)
    assert len(list((out / ".prep/units").glob("*.json"))) > 5


def stop(*_: object, **__: object) -> None:
    raise RuntimeError("stopped here")


def test_killed_at_any_moment_it_gives_the_same_bytes(
    source: Path, straight: Path, tmp_path: Path
) -> None:
    stop_before_dedup(tmp_path / "pristine", source)
    command = ["prep", "--out", str(tmp_path / "shards"), "--input", str(source)]
    command += ["--dedup", "exact", "--workers", "1"]
    command += [f"--{key.replace('_', '-')}={value}" for key, value in OPTIONS.items()]
    tries = kill_often(tmp_path / "shards", tmp_path / "pristine", command, num_kills=8)
    expected, dataset_id = hash_files(straight), read_manifest(straight).dataset_id
    for one in tries:
        assert one["files"] == expected, one["moment"]
        assert set(one["found"]) <= {None, dataset_id}
    assert sum(found is None for one in tries for found in one["found"]) >= 7
    check_whole(tmp_path / "shards", read_manifest(tmp_path / "shards"))


def test_nothing_is_encoded_again_after_a_kill_in_the_middle(
    source: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit whose new files have half of their names is brought to its end, not done again."""
    out = tmp_path / "shards"
    stop_before_dedup(out, source)
    with monkeypatch.context() as patch:
        patch.setattr("prep.copies.cut.sync_folder", stop_on(out))
        with pytest.raises(RuntimeError, match="stopped here"):
            prepare_quietly(out, source, dedup="exact", **OPTIONS)
    assert list((out / ".prep/dedup").glob("*.json")) != []
    with monkeypatch.context() as patch:
        patch.setattr("prep.units.work.encode_batch", stop)
        prepare_quietly(out, source, dedup="exact", **OPTIONS)
    assert set_bytes(out) == set_bytes(straight)


def stop_on(folder: Path) -> object:
    """Fails where the names in `folder` are made durable."""

    def sync(path: Path) -> None:
        if path == folder:
            stop()

    return sync


def test_limits_count_before_copies_go(
    source: Path, files: dict[str, list[str | None]], tmp_path: Path
) -> None:
    options = OPTIONS | {"max_documents": 300, "dedup": "exact"}
    taken: dict[str, list[str | None]] = {}
    left = 300
    for name, texts in files.items():
        taken[name] = []
        for text in texts:
            if left:
                taken[name].append(text)
                left -= bool(text)
    expected = keep_first(taken)
    manifests = []
    for workers in (1, 3):
        out = tmp_path / str(workers)
        manifests.append(prepare_quietly(out, source, workers=workers, **options))
        assert read_documents(out) == expected
        audit = Audit(**manifests[-1].audit)
        assert audit.train + audit.validation + audit.dropped["duplicate"] == 300
    assert manifests[0].dataset_id == manifests[1].dataset_id
    # A shard that is lost afterwards is made again, with the same limits and the same copies.
    out = tmp_path / "1"
    before = set_bytes(out)
    (out / "manifest.json").unlink()
    next(out.glob("train-*.bin")).unlink()
    prepare_quietly(out, source, **options)
    assert set_bytes(out) == before


def test_without_copies_nothing_is_written_again(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", sorted(set(make_texts(300))))  # type: ignore[arg-type]
    manifest = prepare_quietly(tmp_path / "one", tmp_path / "a.jsonl", dedup="exact")
    plain = prepare_quietly(tmp_path / "two", tmp_path / "a.jsonl")
    assert Audit(**manifest.audit).dropped["duplicate"] == 0
    assert set_bytes(tmp_path / "one") == set_bytes(tmp_path / "two")
    assert manifest.dataset_id != plain.dataset_id


@pytest.mark.parametrize("num_hashes", [1, 7, 60])
def test_copies_are_found_out_of_core(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_hashes: int
) -> None:
    """Few hashes at a time, so that a text with many copies fills its file several times over."""
    monkeypatch.setattr("prep.copies.exact.SORTED_HASHES", num_hashes)
    monkeypatch.setattr("shards.near.buckets.DEALT_ENTRIES", 100)
    shards = read_manifest(straight).split("train")[:3]
    placed = [PlacedShard(straight, shard) for shard in [*shards, shards[0], *shards, shards[1]]]
    copies = find_copies(placed, tmp_path / "hashes")
    first = 0
    for place, entry in enumerate(placed):
        count = entry.shard.num_documents
        expected = [] if place < 3 else list(range(count))
        assert copies.among(first, count).tolist() == expected
        first += count
    assert list(tmp_path.iterdir()) == []


def make_entries(hashes: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.array([(high, low, n) for n, (high, low) in enumerate(hashes)], ENTRY)


def test_copies_have_both_halves_in_common() -> None:
    generator = random.Random(3)
    for _ in range(200):
        hashes = [(generator.randrange(4), generator.randrange(3)) for _ in range(20)]
        expected = [pair in hashes[:place] for place, pair in enumerate(hashes)]
        copies, firsts = pair_copies(make_entries(hashes))
        assert sorted(copies.tolist()) == np.flatnonzero(expected).tolist()
        assert [hashes.index(hashes[copy]) for copy in copies] == firsts.tolist()


def test_copies_are_one_bit_each() -> None:
    generator = np.random.default_rng(0)
    numbers = np.unique(generator.integers(0, 1000, 300))
    copies = Copies(1000)
    copies.add(generator.permutation(numbers).astype(np.uint64))
    for first, count in ((0, 1000), (3, 500), (8, 8), (999, 1), (500, 0)):
        inside = numbers[(numbers >= first) & (numbers < first + count)] - first
        assert copies.among(first, count).tolist() == inside.tolist()


def test_another_kind_is_refused(source: Path, tmp_path: Path) -> None:
    code, _, errors = velocity("prep", "--out", tmp_path / "x", "--dedup", "fuzzy")
    assert code == 1
    assert errors == "velocity: --dedup is fuzzy; expected exact or near, or leave the option out\n"
