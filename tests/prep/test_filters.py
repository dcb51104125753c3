"""Documents that are left out: each option against plain Python, and every drop counted."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cli import app
from prep.request import Policy
from prep.text.filters import Filter, make_filter
from prep.units.receipts import Audit
from shards.documents import Sidecars
from shards.format import Manifest, read_manifest
from shards.reader import open_shards
from tests.texts import make_texts, prepare_quietly

LANGUAGES = ["en", "de", None, "en", "fr"]


def make_documents(count: int = 400) -> list[dict[str, Any]]:
    texts: list[str | None] = [*make_texts(count - 3, seed=5), None, "", "caf\u00e9 " * 20]
    return [
        {
            "content": text,
            "url": None if row % 7 == 0 else f"https://{'abc'[row % 3]}.example/{row}",
            "language": LANGUAGES[row % 5],
            "score": row / count,
            "good": row % 2 == 0,
        }
        for row, text in enumerate(texts)
    ]


@pytest.fixture(scope="module", params=[".parquet", ".jsonl"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("source") / f"a{request.param}"
    if request.param == ".parquet":
        table = pa.Table.from_pylist(make_documents())
        table = table.set_column(2, "language", table["language"].dictionary_encode())
        pq.write_table(table, path)
    else:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in make_documents()))
    return path


def read_rows(folder: Path) -> set[int]:
    shards = open_shards(folder)
    return {
        document.source_row
        for split in ("train", "validation")
        for document in Sidecars(shards, split).between(0, shards.stream(split).num_tokens)
    }


def has_url(entry: dict[str, Any], pattern: str) -> bool:
    return entry["url"] is not None and re.search(pattern, entry["url"]) is not None


CASES: list[tuple[dict[str, Any], str, Callable[[dict[str, Any]], bool]]] = [
    ({"min_chars": 120}, "min_chars", lambda d: len(d["content"]) >= 120),
    ({"max_chars": 100}, "max_chars", lambda d: len(d["content"]) <= 100),
    ({"keep_url": r"//[ab]\."}, "keep_url", lambda d: has_url(d, r"//[ab]\.")),
    ({"drop_url": r"9$"}, "drop_url", lambda d: not has_url(d, "9$")),
    ({"where": ("language=en",)}, "where language=en", lambda d: d["language"] == "en"),
    ({"where": ("score>=0.65",)}, "where score>=0.65", lambda d: d["score"] >= 0.65),
    (
        {"where": ("language != en",)},
        "where language != en",
        lambda d: d["language"] in ("de", "fr"),
    ),
    ({"where": ("good=true",)}, "where good=true", lambda d: d["good"]),
]


@pytest.mark.parametrize(("options", "reason", "is_kept"), CASES, ids=[case[1] for case in CASES])
def test_each_option_keeps_what_it_says_and_counts_the_rest(
    source: Path,
    tmp_path: Path,
    options: dict[str, Any],
    reason: str,
    is_kept: Callable[[dict[str, Any]], bool],
) -> None:
    manifest = prepare_quietly(tmp_path / "shards", source, **options)
    documents = make_documents()
    expected = {row for row, d in enumerate(documents) if d["content"] and is_kept(d)}
    assert read_rows(tmp_path / "shards") == expected
    assert manifest.audit["dropped"] == {"null": 1, "empty": 1, reason: 398 - len(expected)}
    assert 0 < len(expected) < 398


def test_the_options_are_those_of_the_command_line(source: Path, tmp_path: Path) -> None:
    options = {
        "min_chars": 60,
        "max_chars": 900,
        "keep_url": r"//[ab]\.",
        "drop_url": "9$",
        "where": ("language!=fr", "score>=0.1"),
    }
    expected = prepare_quietly(tmp_path / "called", source, **options)
    typed = ["--min-chars", "60", "--max-chars", "900", "--keep-url", r"//[ab]\."]
    typed += ["--drop-url", "9$", "--where", "language!=fr", "--where", "score>=0.1"]
    command = ["prep", "--out", str(tmp_path / "typed"), "--input", str(source), "--workers", "1"]
    result = CliRunner().invoke(app, [*command, *typed])
    assert result.exit_code == 0, result.output
    found = read_manifest(tmp_path / "typed")
    assert found.audit == expected.audit
    assert all(count > 0 for count in found.audit["dropped"].values())
    assert found.dataset_id == expected.dataset_id


def test_a_document_is_counted_for_its_first_reason_only(source: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "min_chars": 50,
        "max_chars": 300,
        "where": ("score<0.5", "good=true"),
    }
    manifest = prepare_quietly(tmp_path / "shards", source, **options)
    check_conservation(manifest)
    counts = dict.fromkeys(manifest.audit["dropped"], 0)
    for d in make_documents():
        reasons = {
            "null": d["content"] is None,
            "empty": d["content"] == "",
            "min_chars": len(d["content"] or "") < 50,
            "max_chars": len(d["content"] or "") > 300,
            "where score<0.5": d["score"] >= 0.5,
            "where good=true": not d["good"],
        }
        for reason, holds in reasons.items():
            if holds:
                counts[reason] += 1
                break
    assert manifest.audit["dropped"] == counts


def check_conservation(manifest: Manifest) -> None:
    audit = Audit(**manifest.audit)
    assert audit.documents_read == audit.train + audit.validation + sum(audit.dropped.values())


def test_limits_count_what_is_kept_and_read_no_further(source: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"where": ("good=true",), "max_documents": 50}
    manifest = prepare_quietly(tmp_path / "shards", source, **options)
    check_conservation(manifest)
    assert read_rows(tmp_path / "shards") == set(range(0, 100, 2))
    assert manifest.audit["documents_read"] == 99


def test_the_filters_are_part_of_what_the_set_is(source: Path, tmp_path: Path) -> None:
    plain = prepare_quietly(tmp_path / "plain", source)
    filtered = prepare_quietly(tmp_path / "filtered", source, max_chars=10_000_000)
    assert filtered.content["policy"]["max_chars"] == 10_000_000
    assert "max_chars" not in plain.content["policy"]
    assert filtered.dataset_id != plain.dataset_id
    with pytest.raises(ValueError, match="max_chars was 10000000, is now None"):
        prepare_quietly(tmp_path / "filtered", source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": ("language",)}, r"--where is 'language'; expected a column, one of"),
        ({"where": ("score=high",)}, r"'score' holds double, which cannot be compared with 'high'"),
        ({"keep_url": "("}, r"--keep-url is '\('; expected a regular expression in RE2's syntax"),
        ({"max_chars": 0}, r"--max-chars is 0; expected a number from 1 to 4,611,"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    source: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        prepare_quietly(tmp_path / "shards", source, **options)
    assert "\n" not in str(caught.value)


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column 'language'; the columns are content"):
        prepare_quietly(tmp_path / "shards", tmp_path / "a.parquet", where=("language=en",))
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"a\.txt: is text without columns, so there is no 'lang"):
        prepare_quietly(tmp_path / "other", tmp_path / "a.txt", where=("language=en",))


def test_whole_and_decimal_numbers_are_compared_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    scores: list[float | None] = [0.7] * 1000 + [1, 0, None] + [10**30, 0.65]
    lines = [json.dumps({"content": "a", "score": score}) + "\n" for score in scores]
    path.write_text("".join(lines))
    prepare_quietly(tmp_path / "shards", path, where=("score>=0.65",))
    assert read_rows(tmp_path / "shards") == {*range(1001), 1003, 1004}


def test_columns_of_several_types_on_the_lines_are_compared_each_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "a", "score": 1}\n{"content": "b", "score": "high"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl: .*'score'.* several types"):
        prepare_quietly(tmp_path / "shards", path, where=("score>0",))


def test_a_filter_needs_no_text_to_look_at_columns_only(tmp_path: Path) -> None:
    assert Filter().columns == ()
    assert make_filter(Policy(where=("a=1", "b<2", "a!=3"))).columns == ("a", "b")
