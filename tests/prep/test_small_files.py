"""Thousands of small files: what each costs beside its text, and that nothing of it is lost."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prep.text.batch import encode_batch
from shards.format import Manifest, read_manifest
from tests.texts import make_texts, prepare_quietly, read_texts, set_bytes, write_jsonl

NUM_FILES = 500


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files of two kinds, in folders; among them empty ones, and bad lines and files."""
    folder = tmp_path_factory.mktemp("many")
    for number, text in enumerate(make_texts(NUM_FILES, mean_words=8)):
        place = folder / f"{number % 7}"
        place.mkdir(exist_ok=True)
        line = json.dumps({"content": text, "url": f"u{number}", "n": number}).encode()
        if number % 2:
            (place / f"{number:05d}.txt").write_text(text)
        else:
            (place / f"{number:05d}.json.gz").write_bytes(gzip.compress(line, 1))
    (folder / "1/empty.txt").touch()
    (folder / "2/empty.jsonl").touch()
    (folder / "3/bad.jsonl").write_bytes(b'{"content": "good"}\n{"content": 1}\n[]\n' + line)
    (folder / "4/cut.json.gz").write_bytes(gzip.compress(line * 99)[:-9])
    write_jsonl(folder / "5/long.jsonl", [*make_texts(1100, mean_words=5), None, ""])
    return folder


def prepare_all(out: Path, many: Path, **options: Any) -> Manifest:
    skip: dict[str, Any] = {"on_bad_document": "skip", "validation_fraction": "0.1"}
    return prepare_quietly(out, many, **skip, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"unit_bytes": 20_000, "min_chars": 30, "drop_url": "7$"},
        {"max_tokens": 5000, "unit_bytes": 20_000},
    ],
)
def test_which_documents_are_encoded_together_changes_nothing(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    together = prepare_all(tmp_path / "together", many, **options)
    monkeypatch.setattr("prep.units.waiting.MAX_BATCH_DOCUMENTS", 1)
    apart = prepare_all(tmp_path / "apart", many, **options)
    assert together.dataset_id == apart.dataset_id
    assert set_bytes(tmp_path / "together") == set_bytes(tmp_path / "apart")
    assert json.dumps(together.audit) == json.dumps(apart.audit)
    assert together.environment["sidecar_sha256"] == apart.environment["sidecar_sha256"]


def test_every_file_is_read_and_named(many: Path, tmp_path: Path) -> None:
    audit = prepare_all(tmp_path / "shards", many).audit
    assert len(audit["rows_by_source"]) == NUM_FILES + 4
    assert audit["rows_by_source"]["5/long.jsonl"] == 1102
    assert audit["rows_by_source"]["2/empty.jsonl"] == 0
    assert audit["left_out"] == {"damaged": 1}
    assert [message.partition(":")[0] for message in audit["bad"]] == [
        "3/bad.jsonl, line 2",
        "3/bad.jsonl, line 3",
        "4/cut.json.gz",
    ]
    texts = {name: text for (_, name, _), text in read_texts(tmp_path / "shards").items()}
    expected = make_texts(NUM_FILES, mean_words=8)
    for number in (1, 2, 300, NUM_FILES - 1):
        suffix = "txt" if number % 2 else "json.gz"
        assert texts[f"{number % 7}/{number:05d}.{suffix}"] == expected[number]


def test_a_small_file_costs_little_beside_its_text(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a batch of its own, and a few looks at the disk, however many files there are."""
    look = os.stat
    calls: Counter[str] = Counter()

    def count_batches(*arguments: Any) -> Any:
        calls["batches"] += 1
        return encode_batch(*arguments)

    def count_looks(*arguments: Any, **options: Any) -> os.stat_result:
        calls["looks"] += 1
        return look(*arguments, **options)

    monkeypatch.setattr("prep.units.work.encode_batch", count_batches)
    monkeypatch.setattr(os, "stat", count_looks)
    prepare_all(tmp_path / "shards", many)
    monkeypatch.undo()
    assert read_manifest(tmp_path / "shards").audit["documents_read"] > NUM_FILES
    assert calls["batches"] < 10
    assert calls["looks"] < 13 * NUM_FILES
