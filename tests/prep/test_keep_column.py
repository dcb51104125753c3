"""--keep-column: columns of the sources, as the sidecars have them, and what becomes of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from prep.text.kept import Kept, parse_kept
from shards.format import read_manifest
from shards.reader import open_shards
from shards.where.choice import choose
from tests.commands import velocity
from tests.texts import make_texts, prepare_quietly

TEXTS = make_texts(80)
COLUMNS = (
    "score:number",
    "int_score:integer",
    "language:text",
    "is_clean:boolean",
    "meta.tag:text",
)
ROWS = [
    {
        "content": text,
        "url": f"https://example.com/{n}",
        "score": None if n % 11 == 3 else n / 20,
        "int_score": n % 6,
        "language": ("en", "de", None)[n % 3],
        "is_clean": n % 2 == 0,
        "meta": {"tag": f"t{n % 4}"},
    }
    for n, text in enumerate(TEXTS)
]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    score = pa.array([row["score"] for row in rows], pa.float32())
    table = pa.Table.from_pylist(rows)
    place = table.schema.get_field_index("score")
    pq.write_table(table.set_column(place, "score", score), path, row_group_size=7)


def write_feather(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow.feather.write_feather(pa.Table.from_pylist(rows), path)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Whole numbers are written as such, and every other null is a key that is missing."""
    lines = []
    for n, row in enumerate(rows):
        plain = {k: v for k, v in row.items() if v is not None or n % 2}
        if plain.get("score") in (0, 1, 2, 3):
            plain["score"] = int(plain["score"])
        lines.append(json.dumps(plain) + "\n")
    path.write_text("".join(lines))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    import csv

    names = [*[*rows[0]][:-1], "meta.tag"]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row in rows:
            values = {**row, "meta.tag": row["meta"]["tag"]}
            writer.writerow(["" if values[n] is None else values[n] for n in names])


WRITERS = {"parquet": write_parquet, "feather": write_feather, "jsonl": write_jsonl}


def read_sidecars(folder: Path) -> pa.Table:
    shards = read_manifest(folder).shards
    return pa.concat_tables([pq.read_table(folder / shard.sidecar) for shard in shards])


@pytest.mark.parametrize("kind", ["parquet", "feather", "jsonl", "csv"])
def test_columns_of_every_format_are_kept_as_what_was_said(tmp_path: Path, kind: str) -> None:
    source = tmp_path / f"source.{kind}"
    {**WRITERS, "csv": write_csv}[kind](source, ROWS)
    out = tmp_path / "out"
    prepare_quietly(out, source, keep_column=COLUMNS, validation_fraction="0.2", shard_tokens=1500)
    table = read_sidecars(out)
    types = dict(zip(table.schema.names, table.schema.types, strict=True))
    assert [str(types[name.rpartition(":")[0]]) for name in COLUMNS] == [
        "double",
        "int64",
        "string",
        "bool",
        "string",
    ]
    found = {row["source_row"]: row for row in table.to_pylist()}
    assert len(found) == len(ROWS)
    for n, row in enumerate(ROWS):
        language = row["language"] or ("" if kind == "csv" else None)  # CSV has no null.
        expected = {**row, "language": language, "meta.tag": row["meta"]["tag"]}
        for name in ("score", "int_score", "language", "is_clean", "meta.tag"):
            assert found[n][name] == expected[name], (n, name)
    where = "score >= 0.65 and not is_clean and meta.tag != 't1'"
    choice = choose(open_shards(out), "train", where)
    wanted = [
        row["source_row"]
        for shard in read_manifest(out).split("train")
        for row in pq.read_table(out / shard.sidecar).to_pylist()
        if row["source_row"] >= 13 and row["source_row"] % 4 == 3 and row["score"] is not None
    ]
    assert choice.num_documents == len(wanted) > 5


def test_a_set_without_kept_columns_is_what_it_was(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "source.jsonl", ROWS)
    plain = prepare_quietly(tmp_path / "plain", tmp_path / "source.jsonl")
    kept = prepare_quietly(
        tmp_path / "kept", tmp_path / "source.jsonl", keep_column=("score:number",)
    )
    assert "keep_column" not in plain.content["policy"]
    assert kept.content["policy"]["keep_column"] == ["score:number"]
    assert kept.content["shards"] == plain.content["shards"]
    assert kept.dataset_id != plain.dataset_id
    assert read_sidecars(tmp_path / "plain").schema.names[-1] == "doc_hash"


def test_workers_and_units_change_no_byte(tmp_path: Path) -> None:
    for n in range(4):
        write_jsonl(tmp_path / f"{n}.jsonl", ROWS[n * 20 : n * 20 + 20])
    sources = [tmp_path / f"{n}.jsonl" for n in range(4)]
    one = prepare_quietly(tmp_path / "one", *sources, keep_column=COLUMNS)
    code, _, errors = velocity(
        "prep", "--out", tmp_path / "two", "--workers", 2, "--text-column", "content",
        *(word for source in sources for word in ("--input", source)),
        *(word for column in COLUMNS for word in ("--keep-column", column)),
    )  # fmt: skip
    assert code == 0, errors
    two = read_manifest(tmp_path / "two")
    assert one.dataset_id == two.dataset_id
    assert one.environment["sidecar_sha256"] == two.environment["sidecar_sha256"]


def test_removed_documents_keep_numbers_and_lose_text(tmp_path: Path) -> None:
    write_parquet(tmp_path / "source.parquet", ROWS)
    for mode in ("--keep-places", "--cut"):
        out = tmp_path / mode
        prepare_quietly(out, tmp_path / "source.parquet", keep_column=COLUMNS)
        before = {row["source_row"]: row for row in read_sidecars(out).to_pylist()}
        code, _, errors = velocity("shards", "remove", out, mode, "--url", "https://example.com/13")
        assert code == 0, errors
        after = {row["source_row"]: row for row in read_sidecars(out).to_pylist()}
        if mode == "--cut":
            assert after.keys() == before.keys() - {13}
        else:
            gone = {"url": None, "doc_hash": bytes(16), "language": None, "meta.tag": None}
            assert after[13] == before[13] | gone
            assert after[13]["score"] == 0.65
        for n in after.keys() - {13}:
            names = [name for name in before[n] if name != "start"]
            assert [after[n][name] for name in names] == [before[n][name] for name in names]


def test_copies_are_cut_and_columns_stay(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*ROWS[:30], *ROWS[10:20], *ROWS[30:]])
    out = tmp_path / "out"
    manifest = prepare_quietly(out, tmp_path / "a.jsonl", keep_column=COLUMNS, dedup="exact")
    assert manifest.audit["dropped"]["duplicate"] >= 10
    found = {row["url"]: row for row in read_sidecars(out).to_pylist()}
    for row in ROWS:
        if row["url"] in found:
            assert found[row["url"]]["score"] == row["score"]
    assert len(found) == manifest.audit["train"] + manifest.audit["validation"]


def test_an_append_keeps_the_same_columns(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS[:40])
    write_jsonl(tmp_path / "b.jsonl", ROWS[40:])
    out = tmp_path / "out"
    prepare_quietly(out, tmp_path / "a.jsonl", keep_column=("score:number",))
    words = ("prep", "--append", "--out", out, "--input", tmp_path / "b.jsonl")
    code, _, errors = velocity(*words)
    assert code == 1
    assert "keep_column was ['score:number'], is now None" in errors
    code, _, errors = velocity(*words, "--keep-column", "score:number")
    assert code == 0, errors
    assert choose(open_shards(out), "train", "score >= 0").num_documents > 60


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (
            ("score",),
            "--keep-column is 'score'; expected a column and what it holds, one",
        ),
        (("score:float",), "one of number, integer, text, boolean, such as score:number"),
        ((":number",), "--keep-column is ':number'; expected a column"),
        (("url:text",), "--keep-column url:text: the sidecar has a column url of its own"),
        (("a:text", "a:number"), "--keep-column names 'a' twice; name it once"),
    ],
)
def test_what_is_no_column_to_keep_is_refused(
    tmp_path: Path, texts: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(ValueError, match="--keep-column") as caught:
        parse_kept(texts)
    assert reason in str(caught.value)
    write_jsonl(tmp_path / "a.jsonl", ROWS[:5])
    words = [word for text in texts for word in ("--keep-column", text)]
    code, _, errors = velocity(
        "prep", "--input", tmp_path / "a.jsonl", "--out", tmp_path / "out", *words
    )
    assert code == 1
    assert reason in errors
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_column_of_another_kind_is_refused_by_its_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ROWS)
    for column, reason in (
        ("language:number", "'language' holds the text 'en', which is no number"),
        ("score:integer", "holds other than whole numbers of 64 bits"),
        ("score:text", "--keep-column score:text: the column holds float; expected text"),
        ("int_score:boolean", "the column holds int64; expected boolean"),
        ("scor:number", "a.parquet: no column 'scor'; the columns are content, url, score"),
        (
            "meta:text",
            "the column 'meta' holds struct<tag: string>, which has parts; name meta",
        ),
    ):
        with pytest.raises(ValueError, match=r"a\.parquet") as caught:
            prepare_quietly(tmp_path / "out", tmp_path / "a.parquet", keep_column=(column,))
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


def test_text_that_is_no_number_is_a_bad_document(tmp_path: Path) -> None:
    rows = [row | {"score": "high" if n == 7 else f" {n / 4} "} for n, row in enumerate(ROWS)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 8: .*text 'high', which is no number"):
        prepare_quietly(tmp_path / "out", tmp_path / "a.jsonl", keep_column=("score:number",))
    manifest = prepare_quietly(
        tmp_path / "skipped",
        tmp_path / "a.jsonl",
        keep_column=("score:number",),
        on_bad_document="skip",
    )
    assert manifest.audit["dropped"]["bad: no number"] == 1
    rows = read_sidecars(tmp_path / "skipped").to_pylist()
    assert {row["source_row"]: row["score"] for row in rows} == {
        n: n / 4 for n in range(80) if n != 7
    }


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("number", pa.array([0.65, 3.3, None], pa.float32()), [0.65, 3.3, None]),
        ("number", pa.array([1, None, 3]), [1.0, None, 3.0]),
        ("number", pa.array(["1e3", " 2 ", "", None]), [1000.0, 2.0, None, None]),
        ("number", pa.array([None, None]), [None, None]),
        ("integer", pa.array([1.0, None, 4.0]), [1, None, 4]),
        ("integer", pa.array([2**62, 7], pa.uint64()), [2**62, 7]),
        ("boolean", pa.array(["True", "0", None, "false"]), [True, False, None, False]),
        ("text", pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        ("text", pa.array([18262], pa.date32()), ["2020-01-01"]),
        ("text", pa.array([b"caf\xe9"]), ["caf\ufffd"]),
    ],
)
def test_values_are_converted(kind: str, values: pa.Array, expected: list[object]) -> None:
    found, misfits = Kept("x", kind).convert(values)
    assert (found.to_pylist(), misfits) == (expected, {})


def test_values_of_several_types_are_each_what_they_are() -> None:
    union = pa.UnionArray.from_dense(
        pa.array([0, 1, 0, 1, 1], pa.int8()),
        pa.array([0, 0, 1, 1, 2], pa.int32()),
        [pa.array([1.5, None]), pa.array(["2", "x", "4"])],
    )
    found, misfits = Kept("x", "number").convert(union)
    assert found.to_pylist() == [1.5, 2.0, None, None, 4.0]
    assert [*misfits] == [3]
    assert np.isfinite(found.to_pylist()[0])


@pytest.mark.parametrize("dedup", [None, "exact"])
def test_packed_rows_keep_them_and_padding_has_none(tmp_path: Path, dedup: str | None) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS + ROWS[:9] * (dedup is not None))
    out = tmp_path / "out"
    manifest = prepare_quietly(
        out,
        tmp_path / "a.jsonl",
        keep_column=COLUMNS,
        pack="best-fit",
        pack_tokens=256,
        dedup=dedup,
    )
    paddings = [row for row in read_sidecars(out).to_pylist() if not row["source_file"]]
    assert len(paddings) == sum(shard.num_paddings for shard in manifest.shards) > 5
    names = [name.rpartition(":")[0] for name in COLUMNS]
    assert {row[name] for row in paddings for name in names} == {None}
    found = {row["source_row"]: row for row in read_sidecars(out).to_pylist() if row["source_file"]}
    assert all(found[n]["score"] == ROWS[n]["score"] for n in found)
    code, said, errors = velocity("shards", "count", out, "--where", "score is None", "--json")
    assert code == 0, errors
    missing = [n for n in found if ROWS[n]["score"] is None]
    splits = json.loads(said)["splits"].values()
    assert sum(split["documents"] for split in splits) == len(missing) > 3
