"""--on-bad-document: the first bad one ends the run, or all are left out, counted and named."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.feather import write_feather

from prep.append import append_sources
from prep.gather import finish_parts
from prep.manifest import check_conservation
from prep.policy import Policy
from prep.readers.documents import Piece
from prep.readers.formats import read_documents
from prep.request import Request
from prep.run_part import prepare_part
from prep.sources.local import make_source
from prep.units.receipts import Audit
from prep.vocabulary.passages import LeftOut, read_passages
from prep.vocabulary.request import TrainRequest
from shards.disk.part import parse_part
from shards.format import Manifest, read_manifest
from tests.commands import velocity
from tests.servers.killed import kill_often
from tests.texts import (
    make_texts,
    prepare_quietly,
    prepare_until,
    set_bytes,
    write_jsonl,
    write_parquet,
)

OPTIONS: dict[str, Any] = {
    "validation_fraction": "0.2",
    "unit_bytes": 6000,
    "shard_tokens": 5000,
    "on_bad_document": "skip",
    "where": ("score>=5",),
}
DROPPED = {
    "bad: not a JSON object": 3,
    "bad: no such key": 1,
    "bad: not text": 2,
    "bad: not comparable": 1,
}
LEFT_OUT = {"damaged": 1, "no such column": 1, "in UTF-16": 1}


def write_bad(folder: Path) -> Path:
    """Good documents in two formats, bad ones between them, and three bad files."""
    folder.mkdir()
    texts = make_texts(150)
    lines = [json.dumps({"content": text, "score": str(n)}) for n, text in enumerate(texts)]
    lines[20] = '{"content": "cut sho'
    lines[40] = '["a list"]'
    lines[60] = "not JSON at all"
    lines[61] = '{"text": "another key", "score": "9"}'
    lines[80] = '{"content": {"a": 1}, "score": "9"}'
    lines[100] = '{"content": 5, "score": "9"}'
    lines[120] = '{"content": "a score that is none", "score": "high"}'
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    table = pa.table({"content": make_texts(100, seed=1), "score": pa.array(range(100))})
    pq.write_table(table, folder / "b.parquet", row_group_size=20)
    # Damaged behind documents that are whole.
    pq.write_table(table, folder / "c.parquet", row_group_size=20)
    damage_last_group(folder / "c.parquet")
    pq.write_table(pa.table({"text": ["a"], "score": [9]}), folder / "d.parquet")
    (folder / "e.jsonl").write_bytes('{"content": "wide", "score": 9}\n'.encode("utf-16"))
    return folder


def damage_last_group(path: Path) -> None:
    """Spoil the texts of a parquet file's fifth and last row group."""
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(4).column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bad(tmp_path_factory.mktemp("bad") / "source")


@pytest.fixture(scope="module")
def reference(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set that one process makes."""
    out = tmp_path_factory.mktemp("reference") / "shards"
    prepare_quietly(out, source, **OPTIONS)
    return out


def assert_same(out: Path, reference: Path) -> None:
    found, expected = read_manifest(out), read_manifest(reference)
    assert (found.dataset_id, found.audit) == (expected.dataset_id, expected.audit)
    assert set_bytes(out) == set_bytes(reference)


def test_what_is_bad_is_left_out_and_counted_by_reason(source: Path, reference: Path) -> None:
    audit = read_manifest(reference).audit
    assert {why: n for why, n in audit["dropped"].items() if why.startswith("bad")} == DROPPED
    assert audit["left_out"] == LEFT_OUT
    check_conservation(Audit(**audit))
    assert audit["dropped"]["where score>=5"] == 15
    assert audit["documents_read"] == 310  # The piece of c.parquet with the damage has 40.
    rows = {f["name"]: f["rows"] for f in read_manifest(reference).content["sources"]["files"]}
    assert sum(rows.values()) == 310
    assert len(audit["bad"]) == 5
    assert audit["bad"][0].startswith("a.jsonl, line 21: not JSON (")
    assert audit["bad"][1] == ("a.jsonl, line 41: holds a list; each line must be one JSON object")


def test_it_is_said_how_many_are_left_out_and_the_first_are_named(
    source: Path, tmp_path: Path
) -> None:
    command = ["prep", "--out", tmp_path / "shards", "--input", source, "--workers", 1]
    code, _, out = velocity(*command, "--where", "score>=5", "--on-bad-document", "skip")
    assert code == 0, out
    assert "bad, and left out: 10; the first of them:\n  a.jsonl, line 21: not JSON" in out
    assert "files left out, or pieces of large ones: 1 " in out
    assert "3 bad: not a JSON object" in out


def test_the_first_bad_one_ends_the_run_by_default(source: Path, tmp_path: Path) -> None:
    command = ["prep", "--out", tmp_path / "shards", "--input", source, "--workers", 1]
    code, _, errors = velocity(*command)
    assert (code, errors.count("\n")) == (1, 1)
    assert not (tmp_path / "shards/manifest.json").exists()
    code, _, errors = velocity(*command, "--on-bad-document", "ignore")
    assert errors == "velocity: --on-bad-document is ignore; expected error or skip\n"


def test_the_default_is_no_part_of_what_a_set_is(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*make_texts(20)])
    plain = prepare_quietly(tmp_path / "plain", path)
    named = prepare_quietly(tmp_path / "named", path, on_bad_document="error")
    skipping = prepare_quietly(tmp_path / "skipping", path, on_bad_document="skip")
    assert plain.dataset_id == named.dataset_id
    assert "on_bad_document" not in plain.content["policy"]
    assert not {"left_out", "bad"} & plain.audit.keys()
    assert skipping.content["policy"]["on_bad_document"] == "skip"
    assert skipping.dataset_id != plain.dataset_id
    assert set_bytes(tmp_path / "plain") == set_bytes(tmp_path / "skipping")


def test_any_number_of_workers_makes_the_same_set(
    source: Path, reference: Path, tmp_path: Path
) -> None:
    prepare_quietly(tmp_path / "shards", source, workers=3, **OPTIONS)
    assert_same(tmp_path / "shards", reference)


def test_parts_make_the_same_set(source: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    for part in ("0/2", "1/2"):
        request = Request(
            out, policy=Policy(**OPTIONS), inputs=(str(source),), task=parse_part(part), workers=1
        )
        prepare_part(request, lambda line: None)
    finish_parts(Request(out, task="finish", workers=1), lambda line: None)
    assert_same(out, reference)


def test_killed_at_any_moment_it_makes_the_same_set(
    source: Path, reference: Path, tmp_path: Path
) -> None:
    prepare_until("prep.manifest.check_conservation", tmp_path / "pristine", source, **OPTIONS)
    for unit in (1, 2, 3):
        [path] = (tmp_path / "pristine/.prep/units").glob(f"*{unit:05d}.json")
        path.unlink()
    command = ["prep", "--out", str(tmp_path / "shards"), "--input", str(source), "--workers", "1"]
    for name, value in OPTIONS.items():
        values = value if isinstance(value, tuple) else (value,)
        command += [f"--{name.replace('_', '-')}={one}" for one in values]
    tries = kill_often(tmp_path / "shards", tmp_path / "pristine", command, num_kills=4)
    assert len(tries) == 4
    assert_same(tmp_path / "shards", reference)


def test_appended_bad_documents_are_counted_beside_the_old_ones(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    prepare_quietly(out, write_jsonl(tmp_path / "0.jsonl", [*make_texts(30)]))
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "good"}\noops\n{"content": "better"}\n')
    said: list[str] = []

    def append(**options: Any) -> Manifest:
        request = Request(out, policy=Policy(**options), inputs=(str(path),), workers=1)
        return append_sources(request, said.append)

    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not JSON"):
        append()
    shutil.rmtree(out / ".prep")
    audit = Audit(**append(on_bad_document="skip").audit)
    check_conservation(audit)
    assert (audit.documents_read, audit.dropped["bad: not a JSON object"]) == (33, 1)
    assert any("line 2: not JSON" in line for line in said)


@pytest.mark.parametrize("limit", [{"max_documents": 90}, {"max_tokens": 9000}])
def test_a_budget_counts_good_documents_only(
    source: Path, tmp_path: Path, limit: dict[str, Any]
) -> None:
    one = prepare_quietly(tmp_path / "one", source, **OPTIONS, **limit)
    prepare_quietly(tmp_path / "three", source, workers=3, **OPTIONS, **limit)
    assert_same(tmp_path / "three", tmp_path / "one")
    audit = Audit(**one.audit)
    check_conservation(audit)
    if "max_documents" in limit:
        assert audit.train + audit.validation == 90


def too_large(path: Path) -> str:
    path.write_text(json.dumps({"content": "x" * 4000}) + "\n" + '{"content": "good"}\n')
    return "bad: too large"


def deep(path: Path) -> str:
    path.write_text('{"content": "good"}\n' + "[" * 2500)
    return "bad: not a JSON object"


def null_byte(path: Path) -> str:
    path.write_bytes(b'\0\0\0\0\n{"content": "good"}\n')
    return "bad: not a JSON object"


def mark_alone(path: Path) -> str:
    path.write_bytes(b'\xef\xbb\xbf{"content": "good"}\n{}\n')
    return "bad: no such key"


@pytest.mark.parametrize("make", [too_large, deep, null_byte, mark_alone])
def test_one_bad_line_costs_only_itself(
    tmp_path: Path, make: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("batches", "items"):
        monkeypatch.setattr(f"prep.readers.{module}.MAX_DOCUMENT_BYTES", 3000)
    reason = make(tmp_path / "a.jsonl")
    manifest = prepare_quietly(tmp_path / "shards", tmp_path / "a.jsonl", on_bad_document="skip")
    audit = Audit(**manifest.audit)
    assert (audit.train + audit.validation, audit.documents_read) == (1, 2)
    assert audit.dropped[reason] == 1


@pytest.mark.parametrize("suffix", [".parquet", ".feather"])
def test_a_row_that_is_too_large_has_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """So whoever reads it, prep or the training of a tokenizer, has nothing of it."""
    monkeypatch.setattr("prep.readers.batches.MAX_DOCUMENT_BYTES", 3000)
    path = tmp_path / f"a{suffix}"
    table = pa.table({"content": ["one", "x" * 4000, None, "two", "y" * 5000]})
    write = pq.write_table if suffix == ".parquet" else write_feather
    write(table, path)
    [documents] = read_documents(Piece(str(path), "a"), "content", skips_bad=True)
    assert documents.texts.to_pylist() == ["one", None, None, "two", None]
    assert {place: error.reason for place, error in documents.bad.items()} == {
        1: "too large",
        4: "too large",
    }
    request = TrainRequest(tmp_path / "out", (str(path),), on_bad_document="skip")
    [passages] = read_passages(make_source(path, "a"), request, left_out := LeftOut())
    assert passages.texts.to_pylist() == ["one", "two"]
    assert left_out.num_documents == 2
    audit = prepare_quietly(tmp_path / "shards", path, on_bad_document="skip").audit
    assert (audit["dropped"]["bad: too large"], audit["dropped"]["null"]) == (2, 1)


def damaged_parquet(path: Path) -> Path:
    path = path / "a.parquet"
    write_parquet(path, [f"text {row}" for row in range(2500)], row_group=500)
    damage_last_group(path)
    return path


def cut_gzip(path: Path) -> Path:
    path = path / "a.jsonl.gz"
    lines = [json.dumps({"content": f"text {row} {hash(row)}"}) + "\n" for row in range(2500)]
    path.write_bytes(gzip.compress("".join(lines).encode())[:-20])
    return path


@pytest.mark.parametrize("make", [damaged_parquet, cut_gzip])
def test_a_file_that_turns_out_to_be_damaged_is_left_out_as_a_whole(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    good = write_jsonl(tmp_path / "b.jsonl", [*make_texts(30)])
    alone = prepare_quietly(tmp_path / "alone", good)
    path = make(tmp_path)
    manifest = prepare_quietly(tmp_path / "shards", path, good, on_bad_document="skip")
    assert manifest.audit["left_out"] == {"damaged": 1}
    assert manifest.audit["documents_read"] == alone.audit["documents_read"] == 30
    assert manifest.audit["bad"][0].startswith(f"{path.name}: damaged, cut short, or not what ")
    assert manifest.num_tokens("train") == alone.num_tokens("train")
