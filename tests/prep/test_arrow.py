"""Arrow IPC as input: files and streams of every kind of text, damaged ones, saved datasets."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import datasets
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
import pytest

import prep.readers.arrow
from prep.readers.documents import BadDocument, Piece
from prep.readers.formats import estimate_text_bytes, read_documents, split_file
from shards.format import read_manifest
from shards.inspect.verify import verify_shards
from tests.commands import velocity
from tests.prep.test_parquet import read_apart
from tests.servers.forked import Forked
from tests.texts import make_texts, prepare_quietly, read_texts, set_bytes

TEXTS = [*make_texts(40, mean_words=20), "", None, "é" * 300, None]
KINDS = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "binary": pa.binary(),
    "binary_view": pa.binary_view(),
    "dictionary": pa.dictionary(pa.int16(), pa.string()),
}


def write(
    path: Path, table: pa.Table, is_file: bool = True, max_chunksize: int = 7, **options: Any
) -> Path:
    """A table as an Arrow IPC file or stream, in record batches of so many rows."""
    given = pa.ipc.IpcWriteOptions(**options)
    make = pa.ipc.new_file if is_file else pa.ipc.new_stream
    with make(path, table.schema, options=given) as writer:
        writer.write_table(table, max_chunksize=max_chunksize)
    return path


def make_table(kind: pa.DataType = KINDS["string"]) -> pa.Table:
    """The texts in a column, and inside another, behind columns that must be passed over."""
    texts = pa.array(TEXTS).dictionary_encode() if pa.types.is_dictionary(kind) else None
    texts = pa.array(TEXTS).cast(kind) if texts is None else texts
    count = len(TEXTS)
    struct = pa.StructArray.from_arrays(
        [pa.array(range(count)), texts],
        ["id", "text"],
        mask=pa.array([i == 3 for i in range(count)]),
    )
    return pa.table(
        {
            "tags": pa.array([["a", "b"]] * count, pa.list_(pa.string_view())),
            "runs": pa.RunEndEncodedArray.from_arrays(pa.array([count], pa.int32()), pa.array([1])),
            "either": pa.UnionArray.from_sparse(
                pa.array([0] * count, pa.int8()), [pa.array(range(count)), pa.nulls(count)]
            ),
            "none": pa.nulls(count),
            "json": struct,
            "content": texts,
            "url": pa.array([f"https://a/{i}" for i in range(count)]),
            "score": pa.array([i % 3 for i in range(count)]),
        }
    )


def read(path: Path, column: str = "content", **options: Any) -> list[str | None]:
    batches = [*read_documents(Piece(str(path), "a"), column, **options)]
    assert [row for batch in batches for row in batch.rows] == [
        *range(sum(len(batch.rows) for batch in batches))
    ]
    return [text for batch in batches for text in batch.texts.to_pylist()]


# What is in the files


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_text_of_every_kind_is_read(
    tmp_path: Path, kind: pa.DataType, compression: str | None
) -> None:
    table = make_table(kind)
    inside = [None if i == 3 else text for i, text in enumerate(TEXTS)]
    for is_file in (True, False):
        path = write(tmp_path / "a.arrow", table, is_file, compression=compression)
        assert read(path) == TEXTS
        assert read(path, "json.text") == inside
        num_bytes = sum(len(text.encode()) for text in TEXTS if text)
        assert estimate_text_bytes(path, "content") == pytest.approx(num_bytes, rel=0.1)


def test_the_columns_beside_the_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.feather", make_table(), compression="zstd")
    columns = ["score", "json.id", "none"]
    batches = [*read_documents(Piece(str(path), "a"), "content", columns=columns)]
    found = {name: [v for b in batches for v in b.columns[name].to_pylist()] for name in columns}
    count = len(TEXTS)
    assert found["score"] == [i % 3 for i in range(count)]
    assert found["json.id"] == [None if i == 3 else i for i in range(count)]
    assert found["none"] == [None] * count
    assert [u for b in batches for u in b.urls.to_pylist()] == [
        f"https://a/{i}" for i in range(count)
    ]


def test_a_column_whose_name_has_a_dot_is_that_column(tmp_path: Path) -> None:
    table = pa.table({"json": [{"text": "inside"}], "json.text": ["flat"]})
    assert read(write(tmp_path / "a.arrow", table), "json.text") == ["flat"]


@pytest.mark.parametrize("deltas", [True, False])
def test_a_dictionary_that_grows_or_is_replaced(tmp_path: Path, deltas: bool) -> None:
    chunks = [
        pa.array(words).dictionary_encode()
        for words in (["a", "b", None], ["a", "b", "c", "c"], ["x", "a"])
    ]
    chunks = chunks[:2] if deltas else chunks
    with pa.ipc.new_stream(
        tmp_path / "a.arrow",
        pa.schema([("content", chunks[0].type)]),
        options=pa.ipc.IpcWriteOptions(emit_dictionary_deltas=deltas),
    ) as writer:
        for chunk in chunks:
            writer.write_batch(pa.record_batch({"content": chunk}))
    expected = [value for chunk in chunks for value in chunk.to_pylist()]
    assert read(tmp_path / "a.arrow") == expected


def test_what_pandas_writes_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"content": make_texts(3000)})
    for compression in ("lz4", "zstd", "uncompressed"):
        frame.to_feather(tmp_path / "a.feather", compression=compression)
        assert read(tmp_path / "a.feather") == frame.content.to_list()


def test_a_file_in_pieces_is_the_file_and_a_stream_is_one_piece(tmp_path: Path) -> None:
    """A record batch of a stream is found only behind all the others."""
    for is_file in (True, False):
        path = write(tmp_path / "a.arrow", make_table(KINDS["dictionary"]), is_file)
        pieces = split_file(path, "a", 1000)
        assert len(pieces) > 2 if is_file else pieces == [Piece(str(path), "a")]
        batches = [batch for piece in pieces for batch in read_documents(piece, "content")]
        assert [text for batch in batches for text in batch.texts.to_pylist()] == TEXTS
        assert [row for batch in batches for row in batch.rows] == [*range(len(TEXTS))]


@pytest.mark.parametrize("compression", [None, "lz4"])
@pytest.mark.parametrize("kind", ["string", "dictionary", "string_view"])
def test_a_large_record_batch_takes_about_twice_its_size(
    tmp_path: Path, kind: str, compression: str | None
) -> None:
    """One batch of 400 MB of text, beside a column that nobody wants: that one is not read."""
    text = "word " * 20_000
    texts = pa.array([text] * 4000).cast(KINDS["string"])
    if kind == "dictionary":
        texts = pa.array([text]).dictionary_encode().take(pa.array([0] * 4000))
    if kind == "string_view":  # All rows at one place.
        one = pa.array([text], pa.string_view()).buffers()
        texts = pa.Array.from_buffers(
            pa.string_view(), 4000, [None, pa.py_buffer(bytes(one[1]) * 4000), one[2]]
        )
    table = pa.table({"content": texts, "other": texts})
    path = write(tmp_path / "a.arrow", table, max_chunksize=10_000, compression=compression)
    num_documents, num_bytes, estimate, peak = read_apart(path)
    assert (num_documents, num_bytes, estimate) == (4000, 4000 * len(text), 4000 * len(text))
    assert peak < (1000 if kind == "string" else 300)


# What is wrong with them


@pytest.mark.parametrize("is_file", [True, False])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_file_that_is_cut_anywhere_is_refused(
    tmp_path: Path, is_file: bool, compression: str | None
) -> None:
    """A stream that ends between two record batches as well: pyarrow takes that for its end."""
    path = write(tmp_path / "a.arrow", make_table(), is_file, compression=compression)
    content = path.read_bytes()
    marks = [i for i in range(8, len(content), 8) if content[i : i + 4] == b"\xff\xff\xff\xff"]
    assert len(marks) > 5
    for size in [*marks, *range(0, len(content), 997), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(BadDocument, match=r"a.arrow: damaged, cut short, or not what"):
            read(path)


def test_bytes_behind_the_end_of_a_stream_are_not_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", make_table(), is_file=False)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(BadDocument, match="bytes follow its end"):
        read(path)


def test_flipped_bits_end_in_one_line_or_in_as_many_rows(tmp_path: Path) -> None:
    """Arrow has no checksums: a bit of a text may go unnoticed, but none of them a row."""
    generator = random.Random(1)
    names = ["content", "json.text"]
    outcomes = set()
    for kind in KINDS.values():
        path = write(tmp_path / "a.arrow", make_table(kind), generator.random() < 0.5)
        content = path.read_bytes()
        for _ in range(25):
            changed = bytearray(content)
            changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
            path.write_bytes(changed)
            outcomes.add(read_if_possible(path, generator.choice(names)))
    assert outcomes == {len(TEXTS), -1}


def find_fault(path: Path) -> str:
    """Why a file is refused; "" if it is not."""
    try:
        read(path)
    except BadDocument as error:
        return str(error)
    return ""


def read_if_possible(path: Path, column: str) -> int:
    """The documents of a file; -1 if it is refused, in a line that names it."""
    try:
        return len(read(path, column, columns=["score"]))
    except ValueError as error:
        return -1 if str(error).startswith(f"{path}: ") else -2


def test_feather_of_version_1_says_what_writes_it_again(tmp_path: Path) -> None:
    (tmp_path / "a.feather").write_bytes(b"FEA1" + bytes(60) + b"FEA1")
    with pytest.raises(BadDocument, match=r"is a Feather file of version 1; expected version 2"):
        read(tmp_path / "a.feather")


def test_other_files_and_columns_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", make_table())
    with pytest.raises(BadDocument, match="no column 'text'; the columns are tags, runs, either"):
        read(path, "text")
    with pytest.raises(BadDocument, match="the column 'score' holds int64; expected text"):
        read(path, "score")
    for content in (b"", b"hello", b"PAR1" + bytes(100), b"ARROW1\0\0", b"ARROW1\0\0" + bytes(99)):
        path.write_bytes(content)
        with pytest.raises(BadDocument, match="damaged, cut short, or not what its name says"):
            read(path)


@pytest.mark.parametrize("is_file", [True, False])
def test_a_record_batch_of_more_than_the_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_file: bool
) -> None:
    """Of a file only the columns count that are read; of a stream all of them."""
    texts = pa.table({"content": ["x" * 1000] * 400, "url": ["u"] * 400})
    wide = texts.append_column("other", pa.array(["y" * 10_000] * 400))
    monkeypatch.setattr(prep.readers.arrow, "MAX_BATCH_BYTES", 1_000_000)
    path = tmp_path / "a.arrow"
    assert read(write(path, wide, is_file, max_chunksize=40)) == ["x" * 1000] * 400
    write(path, wide, is_file, max_chunksize=400)
    assert find_fault(path).startswith("" if is_file else f"{path}: has a record batch of more")
    assert bool(find_fault(path)) != is_file
    monkeypatch.setattr(prep.readers.arrow, "MAX_BATCH_BYTES", 300_000)
    assert "write it again in smaller ones: max_chunksize=1000" in find_fault(path)
    write(path, texts, is_file, max_chunksize=50)
    assert read(path) == ["x" * 1000] * 400


def test_a_buffer_that_claims_to_be_huge_takes_no_memory(tmp_path: Path) -> None:
    """The size of a compressed buffer is stated before it: here as 2^60 bytes."""
    table = pa.table({"content": pa.array(["x" * 5000] * 8, pa.string_view())})
    path = write(tmp_path / "a.arrow", table, compression="zstd")
    content = path.read_bytes()
    sizes = [i for i in range(0, len(content) - 12, 8) if content[i + 8 : i + 12] == b"(\xb5/\xfd"]
    messages = []
    for place in sizes:
        path.write_bytes(content[:place] + (1 << 60).to_bytes(8, "little") + content[place + 8 :])
        messages.append(find_fault(path))
    assert any("one that takes more memory than there is" in message for message in messages)
    assert all(messages)


def test_invalid_utf8_is_repaired_and_counted(tmp_path: Path) -> None:
    table = pa.table({"content": pa.array([b"caf\xe9", b"fine"])})
    path = write(tmp_path / "a.arrow", table)
    [batch] = read_documents(Piece(str(path), "a"), "content")
    assert batch.texts.to_pylist() == ["caf\ufffd", "fine"]
    assert batch.repaired.tolist() == [True, False]


def test_a_bad_file_is_left_out_and_the_others_are_kept(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/a.arrow", make_table())
    bad = write(tmp_path / "in/b.arrow", make_table(), is_file=False)
    bad.write_bytes(bad.read_bytes()[:-8])
    code, _, errors = velocity("prep", "--out", tmp_path / "o", "--input", tmp_path / "in")
    assert code == 1
    assert (
        "b.arrow: damaged, cut short, or not what its name says (it ends without its end" in errors
    )
    skip = ("--on-bad-document", "skip", "--workers", 1)
    code, _, errors = velocity("prep", "--out", tmp_path / "s", "--input", tmp_path / "in", *skip)
    assert code == 0
    assert "1 damaged" in errors
    assert read_manifest(tmp_path / "s").audit["documents_read"] == len(TEXTS)


# What `datasets` saved


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved dataset of three shards, of which caches were made, and one of two splits."""
    folder = tmp_path_factory.mktemp("saved")
    datasets.disable_progress_bars()
    texts = make_texts(120)
    whole = datasets.Dataset.from_dict({"content": texts, "url": [f"u{i}" for i in range(120)]})
    whole.save_to_disk(folder / "one", num_shards=3)
    again = datasets.load_from_disk(folder / "one")
    again.shuffle(seed=1).map(lambda row: {"content": row["content"] + "!"})
    assert list((folder / "one").glob("cache-*.arrow"))
    splits = {"train": whole.shuffle(seed=2), "test": whole.select(range(7))}
    datasets.DatasetDict(splits).save_to_disk(folder / "two")
    return folder


@pytest.mark.parametrize(
    ("name", "options", "subset"),
    [("one", (), None), ("two", (), "train"), ("two", ("--split", "test"), "test")],
)
def test_a_saved_dataset_is_what_datasets_loads(
    saved: Path, tmp_path: Path, name: str, options: tuple[str, ...], subset: str | None
) -> None:
    loaded = datasets.load_from_disk(saved / name)
    rows = loaded[subset] if subset else loaded
    out = tmp_path / "shards"
    words = ("--validation-fraction", "0", "--workers", 1, "--input", saved / name, *options)
    code, _, errors = velocity("prep", "--out", out, *words)
    assert code == 0, errors
    assert [*read_texts(out).values()] == rows["content"][:]
    assert read_manifest(out).audit["documents_read"] == len(rows)
    left_out = "other splits 1" if subset else "caches of datasets 2"
    assert left_out in errors


def test_a_split_that_is_not_there_is_told_with_those_that_are(saved: Path, tmp_path: Path) -> None:
    words = ("--input", saved / "two", "--split", "validation")
    code, _, errors = velocity("prep", "--out", tmp_path / "o", *words)
    assert code == 1
    assert "two: no split 'validation'; the splits are train, test; name one with --split" in errors


def test_a_saved_dataset_that_lacks_a_file_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for path in (saved / "one").iterdir():
        (folder / path.name).parent.mkdir(exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "data-00001-of-00003.arrow").unlink()
    code, _, errors = velocity("prep", "--out", tmp_path / "o", "--input", folder)
    assert code == 1
    assert "names data-00001-of-00003.arrow, which is not there (1 of 3 files" in errors


def test_killed_on_the_way_it_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments, then the same command, until the set is there."""
    reference = prepare_quietly(
        tmp_path / "reference", saved / "one", unit_bytes=4000, validation_fraction="0.2"
    )
    out = tmp_path / "shards"
    command = [
        "velocity",
        "prep",
        "--out",
        str(out),
        "--input",
        str(saved / "one"),
        "--workers",
        "1",
    ]
    command += ["--unit-bytes", "4000", "--validation-fraction", "0.2"]
    generator = random.Random(3)
    for _ in range(4):
        process = Forked(command)
        time.sleep(generator.uniform(0.02, 0.4))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert Forked(command).wait() == 0
    assert read_manifest(out).dataset_id == reference.dataset_id
    assert set_bytes(out) == set_bytes(tmp_path / "reference")
    assert not any(fault for _, fault in verify_shards(out))
