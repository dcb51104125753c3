"""Parquet files that say little of what they hold: texts stored once, odd types, lying footers."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prep.policy import Policy
from prep.readers.documents import BadDocument, Piece
from prep.readers.formats import estimate_text_bytes, read_documents
from prep.request import Request
from prep.run import prepare
from tests.footers import Struct, edit_footer
from tests.texts import make_texts, prepare_quietly

MIB = 1 << 20
# Reads a file to its end, and prints its documents, their bytes, and the peak memory in MiB.
READ = """
import sys
from pathlib import Path
from prep.policy import Policy
from prep.request import Request
from prep.run import prepare
from prep.readers.documents import BadDocument, Piece
from prep.readers.formats import estimate_text_bytes, read_documents
path, column, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
estimate = estimate_text_bytes(Path(path), column)
num_documents = num_bytes = 0
for documents in read_documents(Piece(path, "a"), column):
    num_documents += len(documents.rows)
    num_bytes += int(documents.num_bytes.sum())
    del documents
    if num_documents >= limit:
        break
# Not ru_maxrss, which begins with what the process that started this one had.
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(num_documents, num_bytes, estimate, int(peak.split()[1]) >> 10)
"""


def read_apart(path: Path, column: str = "content", limit: int = 10**9) -> list[int]:
    """Documents, bytes, the forecast of them, and peak MiB of a process that reads the file."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path), column, str(limit)],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def repeat(text: str, count: int) -> pa.Array:
    """A text in so many rows, stored once."""
    indices = pa.array(np.zeros(count, np.int32))
    return pa.DictionaryArray.from_arrays(indices, pa.array([text]))


def write(path: Path, content: pa.Array, name: str = "content", **options: Any) -> Path:
    pq.write_table(pa.table({name: content}), path, **options)
    return path


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_text_that_is_stored_once_is_counted_in_each_row(tmp_path: Path, version: str) -> None:
    path = write(
        tmp_path / "a.parquet",
        repeat("word " * 100_000, 400),
        compression="zstd",
        data_page_version=version,
    )
    assert path.stat().st_size < MIB // 10
    num_documents, num_bytes, estimate, peak = read_apart(path)
    assert (num_documents, num_bytes) == (400, 400 * 500_000)
    assert 0.9 < estimate / num_bytes < 1.1
    assert peak < 700


def test_a_bomb_is_read_as_far_as_it_is_wanted(tmp_path: Path) -> None:
    """Two thousand rows of 20 MB are 40 GB, in a file of a few kilobytes."""
    path = write(tmp_path / "a.parquet", repeat("x" * 20_000_000, 2000), compression="zstd")
    num_documents, num_bytes, estimate, peak = read_apart(path, limit=2)
    assert num_documents >= 2
    assert num_bytes == num_documents * 20_000_000
    assert 0.9 < estimate / 40e9 < 1.1
    assert peak < 900


def test_a_text_that_is_stored_once_inside_another_column(tmp_path: Path) -> None:
    inner = pa.array(["word " * 100_000] * 300)
    struct = pa.StructArray.from_arrays([inner, pa.array(range(300))], ["text", "id"])
    path = write(tmp_path / "a.parquet", struct, "json", compression="zstd")
    num_documents, num_bytes, estimate, peak = read_apart(path, "json.text")
    assert (num_documents, num_bytes) == (300, 300 * 500_000)
    assert 0.9 < estimate / num_bytes < 1.1
    assert peak < 700


def test_texts_that_store_only_differences(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        pa.array(["word " * 100_000 + str(row) for row in range(300)]),
        use_dictionary=False,
        column_encoding={"content": "DELTA_BYTE_ARRAY"},
    )
    num_documents, num_bytes, estimate, peak = read_apart(path)
    assert num_documents == 300
    assert 0.8 < estimate / num_bytes < 1.2
    assert peak < 900


@pytest.mark.parametrize("order", [1, -1])
def test_one_long_text_among_many_short_ones_does_not_make_the_forecast(
    tmp_path: Path, order: int
) -> None:
    texts: list[str | None] = ["word " * 400_000, *["short"] * 5000, *[None] * 5000]
    path = write(tmp_path / "a.parquet", pa.array(texts[::order]), row_group_size=4000)
    num_bytes = 2_000_000 + 25_000
    assert num_bytes <= estimate_text_bytes(path, "content") < 1.3 * num_bytes
    batches = list(read_documents(Piece(str(path), "a"), "content"))
    assert [t for batch in batches for t in batch.texts.to_pylist()] == texts[::order]


def test_a_dictionary_that_gives_way_to_plain_text(tmp_path: Path) -> None:
    """Writers do so when it grows: the first rows are looked up, the last ones are not."""
    texts = [*make_texts(20, seed=1) * 200, *("unlike " * 200 + str(n) for n in range(3000))]
    path = write(tmp_path / "a.parquet", pa.array(texts), dictionary_pagesize_limit=100_000)
    num_bytes = sum(len(text.encode()) for text in texts)
    assert 0.7 < estimate_text_bytes(path, "content") / num_bytes < 1.4
    found = [
        text
        for batch in read_documents(Piece(str(path), "a"), "content")
        for text in batch.texts.to_pylist()
    ]
    assert found == texts


def test_ordinary_text_is_forecast_from_the_footer(tmp_path: Path) -> None:
    texts = make_texts(3000)
    path = write(tmp_path / "a.parquet", pa.array(texts))
    num_bytes = sum(len(text.encode()) for text in texts)
    assert 0.9 < estimate_text_bytes(path, "content") / num_bytes < 1.3


def test_what_prep_says_it_needs_is_what_it_writes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", repeat("word " * 1000, 400))
    said: list[str] = []
    request = Request(
        tmp_path / "shards",
        policy=Policy(validation_fraction="0"),
        inputs=(str(path),),
        workers=1,
    )
    manifest = prepare(request, said.append)
    assert any("about 2 MB of text" in line for line in said), said
    assert manifest.num_tokens("train") > 400_000


def two_columns(path: Path) -> Path:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["content", "content"])
    pq.write_table(table, path)
    return path


def two_fields(path: Path) -> Path:
    fields = [pa.field("text", pa.string()), pa.field("text", pa.string())]
    struct = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], fields=fields)
    return write(path, struct, "json")


def two_others(path: Path) -> Path:
    pq.write_table(
        pa.table(
            [pa.array(["a"]), *[pa.array(["en"])] * 3], names=["content", "lang", "lang", "lang"]
        ),
        path,
    )
    return path


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (two_columns, {}, "has two columns 'content'; expected one"),
        (two_fields, {"text_column": "json.text"}, "has two columns 'json.text'; expected one"),
        (two_others, {"where": ("lang=en",)}, "has 3 columns 'lang'; expected one"),
    ],
)
def test_columns_of_one_name_are_refused(
    tmp_path: Path, make: Callable[[Path], Path], options: dict[str, Any], message: str
) -> None:
    path = make(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message) as caught:
        prepare_quietly(tmp_path / "shards", path, **options)
    assert "a.parquet: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_of_one_name_that_are_not_asked_for_are_in_no_ones_way(tmp_path: Path) -> None:
    path = two_others(tmp_path / "a.parquet")
    assert prepare_quietly(tmp_path / "shards", path).audit["documents_read"] == 1


def test_a_flat_column_goes_before_a_field_of_that_name(tmp_path: Path) -> None:
    struct = pa.StructArray.from_arrays([pa.array(["inner", None])], ["text"])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"json": struct, "json.text": ["flat", "other"]}), path)
    [batch] = read_documents(Piece(str(path), "a"), "json.text")
    assert batch.texts.to_pylist() == ["flat", "other"]
    pq.write_table(pa.table({"json": struct}), path)
    [batch] = read_documents(Piece(str(path), "a"), "json.text")
    assert batch.texts.to_pylist() == ["inner", None]
    pq.write_table(pa.table({"a": pa.StructArray.from_arrays([struct], ["b"])}), path)
    [batch] = read_documents(Piece(str(path), "a"), "a.b.text")
    assert batch.texts.to_pylist() == ["inner", None]


def test_a_page_that_only_a_bomb_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prep.readers.pages._MAX_PAGE_BYTES", 2 * MIB)
    path = write(tmp_path / "a.parquet", pa.array(["x" * MIB] * 50), compression="zstd")
    assert len(list(read_documents(Piece(str(path), "a"), "content"))) > 1  # In a dictionary, once.
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": False}
    path = write(tmp_path / "a.parquet", pa.array(["x" * MIB] * 50), **options)
    with pytest.raises(ValueError, match=r"'content' has a page of 52\.4 MB for 50 texts; "):
        list(read_documents(Piece(str(path), "a"), "content"))
    skipping = read_documents(Piece(str(path), "a"), "content", skips_bad=True)
    with pytest.raises(BadDocument):
        list(skipping)
    # Text as people write it makes pages as large, of files as large.
    texts = [" ".join(make_texts(300, seed=seed)) for seed in range(40)]
    write(path, pa.array(texts), **options)
    batches = read_documents(Piece(str(path), "a"), "content")
    assert [text for batch in batches for text in batch.texts.to_pylist()] == texts


FOOTERS = [
    ("group", "num_rows", 0),
    ("group", "num_rows", 999),
    ("group", "num_rows", 1001),
    ("group", "num_rows", 2**60),
    ("group", "num_rows", -1),
    ("column", "num_values", 2**60),
    ("column", "num_values", -1),
    ("column", "total_uncompressed_size", 2**60),
    ("column", "total_uncompressed_size", -(2**62)),
    ("column", "total_compressed_size", 2**60),
    ("column", "total_compressed_size", -1),
    ("column", "total_compressed_size", 1),
    ("column", "data_page_offset", 2**60),
    ("column", "data_page_offset", -1),
    ("column", "data_page_offset", 1),
]
# The numbers of these fields in parquet.thrift.
NUMBERS = {
    "num_rows": 3,
    "num_values": 5,
    "total_uncompressed_size": 6,
    "total_compressed_size": 7,
    "data_page_offset": 9,
}


@pytest.mark.parametrize(("place", "name", "value"), FOOTERS)
def test_a_footer_that_lies_is_refused_or_does_not_matter(
    tmp_path: Path, place: str, name: str, value: int
) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text {row}" for row in range(3000)]
    pq.write_table(pa.table({"content": texts}), path, row_group_size=1000, compression="none")

    def change(footer: Struct) -> None:
        group = footer[4][1]
        struct = group if place == "group" else group[1][0][3]
        assert NUMBERS[name] in struct
        struct[NUMBERS[name]] = value

    edit_footer(path, change)
    damaged = f"{path}: damaged, cut short, or not what its name says ("
    for act in (estimate, read):
        said = damaged
        try:
            found = act(path)
            assert found == 3000 or (act is estimate and 20_000 < found < 60_000)
        except ValueError as error:
            said = str(error)
        assert said.startswith(damaged)
        assert "\n" not in said


def estimate(path: Path) -> int:
    return estimate_text_bytes(path, "content")


def read(path: Path) -> int:
    return sum(len(batch.rows) for batch in read_documents(Piece(str(path), "a"), "content"))
