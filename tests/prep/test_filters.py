"""Documents that are left out: each option against plain Python, and every drop counted."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cli import app
from prep.policy import Policy
from prep.readers.documents import BadDocument, Piece
from prep.readers.formats import read_documents
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
    options: dict[str, Any] = {
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


def test_values_of_several_types_are_compared_each_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    scores = [1, "2", True, None, 2.5, " 3 ", "", "-1e3", 10**30]
    path.write_text("".join(json.dumps({"content": "a", "score": s}) + "\n" for s in scores))
    with pytest.raises(ValueError, match=r"a\.jsonl: --where 'score!=2': .* holds bool, which "):
        prepare_quietly(tmp_path / "equal", path, where=("score!=2",))
    path.write_text(path.read_text().replace("true", "7"))
    prepare_quietly(tmp_path / "shards", path, where=("score>=2",))
    assert read_rows(tmp_path / "shards") == {1, 2, 4, 5, 8}
    with path.open("a") as file:
        file.write('{"content": "b", "score": "high"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 10: --where 'score>0': 'score' "):
        prepare_quietly(tmp_path / "other", path, where=("score>0",))


DAY = datetime(2019, 1, 1, tzinfo=UTC)
MOMENTS = [DAY - timedelta(microseconds=1), DAY, DAY + timedelta(days=200), None]
DATES = [DAY.date() - timedelta(1), DAY.date(), DAY.date() + timedelta(200), None]
NUMBERS = ["1", "5", "10", None]


def cast_all(values: list[Any], *kinds: pa.DataType) -> list[pa.Array]:
    return [pa.array(values).cast(kind) for kind in kinds]


def encode(arrays: list[pa.Array]) -> list[pa.Array]:
    """The arrays, and each with its values in a dictionary."""
    return [*arrays, *(values.dictionary_encode() for values in arrays)]


TEXT = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view())
WHOLE = (pa.int8(), pa.int64(), pa.uint8(), pa.uint64(), pa.float32(), pa.float64())
DECIMALS = [pa.array([n and Decimal(n) for n in NUMBERS], pa.decimal128(8, 2))]
NUMBER_ARRAYS = [
    *encode(cast_all(NUMBERS, pa.string(), *WHOLE)),
    *cast_all(NUMBERS, *TEXT[1:]),
    pa.array(np.array([1, 5, 10, np.nan], np.float16)),
    *DECIMALS,
]
MOMENT_ARRAYS = [
    *(pa.array(MOMENTS, pa.timestamp("us", zone)) for zone in ("UTC", "+02:00", None)),
    pa.array(MOMENTS, pa.timestamp("us", "UTC")).cast(pa.timestamp("ns", "America/New_York")),
    pa.array([m and m.isoformat() for m in MOMENTS]),
    pa.array([m and m.isoformat().encode() for m in MOMENTS], pa.binary_view()),
    pa.array(DATES, pa.date32()),
    pa.array(DATES, pa.date64()),
    pa.array([d and str(d) for d in DATES]).dictionary_encode(),
]


def judge(values: pa.Array, condition: str, folder: Path) -> set[int]:
    """The rows of a parquet file with these values for which a condition holds."""
    path = folder / "a.parquet"
    pq.write_table(pa.table({"content": ["a"] * len(values), "x": values}), path)
    filters = Filter(where=(condition,))
    [batch] = read_documents(Piece(str(path), "a"), "content", columns=filters.columns)
    return set(np.flatnonzero(filters.choose(batch).kept).tolist())


@pytest.mark.parametrize("values", NUMBER_ARRAYS, ids=lambda values: str(values.type))
def test_numbers_of_every_type_are_compared_as_numbers(tmp_path: Path, values: pa.Array) -> None:
    for condition, rows in {
        "x>=5": {1, 2},
        "x > 5.0": {2},
        "x<=5.5": {0, 1},
        "x<1e1": {0, 1},
        "x=10": {2},
        "x!=10": {0, 1},
        "x>-1": {0, 1, 2},
        "x<1000": {0, 1, 2},
        "x>=1e400": set[int](),
        "x<nan": set[int](),
    }.items():
        missing = {3} if condition == "x!=10" and values.type == pa.float16() else set()
        assert judge(values, condition, tmp_path) == rows | missing, condition


@pytest.mark.parametrize("values", MOMENT_ARRAYS, ids=lambda values: str(values.type))
def test_dates_of_every_type_are_compared_as_moments(tmp_path: Path, values: pa.Array) -> None:
    for condition, rows in {
        "x>=2019-01-01": {1, 2},
        "x>=2019": {1, 2},
        "x<2019-01": {0},
        "x>2019-01-01T00:00:00Z": {2},
        "x>=2019-01-01 02:00:00+02:00": {1, 2},
        "x<=2018-12-31 23:59:59.9999995": {0},
        "x<9999-12-31": {0, 1, 2},
        "x>0001-01-01": {0, 1, 2},
    }.items():
        assert judge(values, condition, tmp_path) == rows, condition


@pytest.mark.parametrize(
    ("values", "condition", "message"),
    [
        (pa.array([DAY]), "x>=soon", r"give a date such as 2019-01-01 or 2019-01-01T12:00:00Z"),
        (pa.array([DAY]), "x>=2019-02-30", r"holds timestamp.*with '2019-02-30'; give a date"),
        (pa.array([1]), "x=en", "holds int64, which cannot be compared with 'en'; give a number"),
        (
            pa.array([True]),
            "x=yes",
            "holds bool, .* with 'yes'; give true or false",
        ),
        (pa.array(["a"]), "x>5", r"a\.parquet, row 0: .*the text 'a', which is not a number"),
        (pa.array(["5"]), "x>2019-01-01", "the text '5', which is not a date"),
        (pa.array([[1]]), "x=1", "the column 'x' holds list<.*, which has parts"),
        (pa.array([{"y": 1}]), "x=1", r"holds struct<.*has parts; name x\.y"),
        (pa.array([timedelta(1)]), "x=1", "holds duration"),
    ],
)
def test_what_cannot_be_compared_is_told_with_what_can(
    tmp_path: Path, values: pa.Array, condition: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        judge(values, condition, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["5", "true", "en", "2019", "", "nan", "9" * 400, "\udcff"])
def test_nothing_that_is_typed_is_a_traceback(tmp_path: Path, value: str) -> None:
    for values in (*NUMBER_ARRAYS, *MOMENT_ARRAYS, pa.nulls(4), pa.array([True, None])):
        for comparison in ("=", "!=", "<", ">="):
            said = None
            try:
                judge(values, f"x{comparison}{value}", tmp_path)
            except ValueError as error:
                said = error
            assert type(said) in (type(None), ValueError, BadDocument)
            assert "\n" not in str(said)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_lies_inside_another_column_is_compared(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    entries = [
        {"content": "a", "meta": {"lang": "en", "score": {"of": "10"}}},
        {"content": "b", "meta": {"lang": "de", "score": {"of": "9"}}},
        {"content": "c", "meta": None},
    ]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(entries), path)
    else:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    prepare_quietly(tmp_path / "one", path, where=("meta.lang=en",))
    assert read_rows(tmp_path / "one") == {0}
    prepare_quietly(tmp_path / "two", path, where=("meta.score.of>=10",))
    assert read_rows(tmp_path / "two") == {0}


def test_a_key_that_no_line_has_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "a", "lang": "en"}\n' * 200)
    for key in ("langg", "lang.x", "Lang"):
        with pytest.raises(
            ValueError, match=rf"a\.jsonl: no key '{key}' on any line; the keys are "
        ):
            prepare_quietly(tmp_path / key, path, where=(f"{key}=en",), unit_bytes=500)
    # One line that has it, in whatever piece, is enough; null is there.
    with path.open("a") as file:
        file.write('{"content": "b", "langg": null}\n')
    manifest = prepare_quietly(tmp_path / "shards", path, where=("langg!=en",), unit_bytes=500)
    assert manifest.audit["dropped"]["where langg!=en"] == 201


def test_a_filter_needs_no_text_to_look_at_columns_only(tmp_path: Path) -> None:
    assert Filter().columns == ()
    assert make_filter(Policy(where=("a=1", "b<2", "a!=3"))).columns == ("a", "b")
