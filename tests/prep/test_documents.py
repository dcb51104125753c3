"""Source files as documents: each format, its parts, its damage, and what each error says."""

import gzip
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from prep.files.streams import open_stream
from prep.readers.documents import Piece
from prep.readers.formats import estimate_text_bytes, read_documents, split_file
from prep.request import COMPRESSIONS, SUFFIXES
from tests.packings import PACKERS, pack
from tests.reading import Found, join, read

TEXTS = [
    "plain",
    "",
    "caf\u00e9 \u4f60\u597d \U0001f600",
    "two\nlines\r\n",
    "nul \x00 <|endoftext|>",
]


def write_lines(path: Path, texts: list[str | None], **more: Any) -> Path:
    lines = [json.dumps({"content": text, **more}) + "\n" for text in texts]
    data = "".join(lines).encode()
    path.write_bytes(pack(data, path.name))
    return path


def write_parquet(path: Path, content: pa.Array, **columns: Any) -> Path:
    options = {"row_group_size": columns.pop("row_group_size", None)}
    pq.write_table(pa.table({"content": content, **columns}), path, **options)
    return path


def count_bytes(texts: list[str | None]) -> int:
    return sum(len(text.encode()) for text in texts if text)


# What every format gives


@pytest.mark.parametrize(
    "suffix",
    [
        *(suffix for suffix in SUFFIXES if "json" in suffix or suffix == ".parquet"),
        *(".JSONL", ".Json.Gz", ".PARQUET", ".NdJson.ZST"),
    ],
)
def test_texts_urls_and_rows_come_as_they_stand(tmp_path: Path, suffix: str) -> None:
    texts = [*TEXTS, None, "after null"]
    path = tmp_path / f"a{suffix}"
    is_parquet = suffix.lower() == ".parquet"
    if is_parquet:
        write_parquet(path, pa.array(texts), url=[f"http://{i}" for i in range(len(texts))])
    else:
        write_lines(path, texts, url="http://x")
    found = read(path)
    assert found.texts == texts
    assert found.rows == list(range(len(texts)))
    assert found.urls[3] == ("http://3" if is_parquet else "http://x")
    assert found.num_bytes == count_bytes(texts)
    assert found.repaired == [False] * len(texts)


def test_a_text_file_is_a_document_to_the_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    content = "  One.\r\n\r\nTwo, \u4f60.\n\n\n"
    path.write_bytes(content.encode())
    assert read(path) == Found([content], [None], [0], [False], len(content.encode()))
    path.write_bytes(b"")
    assert read(path).texts == [""]


def test_a_text_file_is_a_document_a_block(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n \nOne.\n  Indented.\n\n\t\nTwo.\r\nMore.\r\n\r\nThree")
    found = read(path, blank_line_documents=True)
    assert found.texts == ["One.\n  Indented.", "Two.\r\nMore.", "Three"]
    assert found.rows == [0, 1, 2]
    path.write_bytes(b"\n\n")
    assert read(path, blank_line_documents=True).texts == []


def test_blank_lines_hold_no_document_and_count_as_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"content": "a"}\r\n\r\n  \n{"content": "b"}')
    found = read(path)
    assert (found.texts, found.rows) == (["a", "b"], [1, 4])


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt"])
def test_a_byte_order_mark_is_dropped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    data = b"\xef\xbb\xbf" + (b"text" if suffix == ".txt" else b'{"content": "text"}\n')
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))
    assert read(path).texts == ["text"]
    path.write_bytes(pack("text".encode("utf-16")))
    with pytest.raises(ValueError, match="is in UTF-16; convert it with iconv"):
        read(path)


def test_files_joined_with_their_marks_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    mark, line = b"\xef\xbb\xbf", b'{"content": "\xef\xbb\xbftext"}\n'
    path.write_bytes(mark + line + mark + line + mark + b"\r\n" + mark + mark + line + mark)
    found = read(path)
    assert found.texts == ["\ufefftext"] * 3
    assert found.rows == [0, 1, 3]
    assert not any(found.repaired)
    assert join(split_file(path, "a", 20)) == found
    path.write_bytes(mark + b"oops\n")
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: not JSON \(Expecting value at"):
        read(path)


RUSSIAN = "\u0432\u0441\u0435 \u043b\u044e\u0434\u0438 \u0440\u043e\u0436\u0434\u0430\u044e\u0442"
CHINESE = "\u4eba\u4eba\u751f\u800c\u81ea\u7531\n\u5728\u5c0a\u4e25"
JAPANESE = "\u3059\u3079\u3066\u306e\u4eba\u9593\u306f \u751f\u307e\u308c"
ARABIC = "\u064a\u0648\u0644\u062f \u062c\u0645\u064a\u0639"
WIDE = {
    "UTF-16LE": ["English text.\n", "one\ttwo", RUSSIAN, CHINESE, ARABIC, "hi"],
    "UTF-16BE": ["English text.\n", RUSSIAN, CHINESE, JAPANESE, "caf\u00e9 au lait"],
    "UTF-32LE": ["English text.\n", RUSSIAN, CHINESE, "hi"],
    "UTF-32BE": ["English text.\n", "\U0001f642 and so on", JAPANESE],
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in WIDE.items() for text in texts]
)
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json.gz", ".jsonl.zst"])
def test_utf_16_and_32_are_told_without_a_mark(
    tmp_path: Path, name: str, text: str, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    content = text if suffix == ".txt" else json.dumps({"content": text}) + "\n"
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(pack((content * 400).encode(name)))
    with pytest.raises(ValueError, match=f"is in {name}; convert it with iconv -f {name} -t UTF-8"):
        read(path)
    if suffix == ".txt":
        path.write_bytes(text.encode(name))  # However short.
        with pytest.raises(ValueError, match=f"is in {name}; "):
            read(path, blank_line_documents=True)


def test_a_mark_of_utf_32_is_not_taken_for_one_of_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for mark, name in ((b"\xff\xfe\0\0", "UTF-32LE"), (b"\0\0\xfe\xff", "UTF-32BE")):
        path.write_bytes(mark + "text".encode(name))
        with pytest.raises(ValueError, match="is in UTF-32; convert it with iconv -f UTF-32 -t"):
            read(path)


@pytest.mark.parametrize(
    "data",
    [
        b"nul \x00 <|endoftext|>",
        b"one\0two\0three\0",
        b"\0" * 4096,
        b"a\0\0\0",
        "na\u00efve \0 caf\u00e9".encode(),
        "na\u00efve \0 caf\u00e9 \0".encode("latin-1") * 100,
        f"{CHINESE}\0{CHINESE}".encode(),
        CHINESE.encode("gb18030") * 100,
        b"".join(bytes([i]) for i in range(256)),
        b"\0text",
        b"ab\0",
    ],
)
def test_a_nul_alone_does_not_make_utf_16(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert read(path).texts == [data.decode("utf-8", "replace")]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_an_empty_file_has_no_documents(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        write_parquet(path, pa.array([], pa.string()))
    else:
        write_lines(path, [])
    assert read(path).texts == []
    assert split_file(path, "a", 10) == [Piece(str(path), "a")]
    path.write_bytes(b"")
    if suffix != ".parquet":
        assert read(path).texts == []


# What is not valid Unicode


def test_invalid_text_is_replaced_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"content": "good", "url": "\\ud800"}\n'
        b'{"content": "bad \xff\xfe byte"}\n'
        b'{"content": "lone \\ud83d\\ud83d", "url": "http://x"}\n'
        b'{"content": "pair \\ud83d\\ude00"}\n'
        b'{"content": "own \xef\xbf\xbd"}\n'
        b'{"content": "fine", "other": "\xff"}\n'
    )
    found = read(path)
    assert found.texts == [
        "good",
        "bad \ufffd\ufffd byte",
        "lone \ufffd\ufffd",
        "pair \U0001f600",
        "own \ufffd",
        "fine",
    ]
    assert found.urls[0] == "\ufffd"
    assert found.repaired == [False, True, True, False, False, False]
    assert sum(found.repaired) == 2
    assert found.num_bytes == count_bytes(found.texts)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_invalid_bytes_in_parquet_are_replaced_and_counted(tmp_path: Path, kind: Any) -> None:
    raw = pa.array([b"ok", b"\xff bad", None, b"caf\xc3\xa9", b"\xed\xa0\x80"], pa.binary())
    column = raw.cast(pa.large_binary()).view(pa.large_string())
    column = raw.cast(kind) if "binary" in str(kind) else column.cast(kind)
    found = read(write_parquet(tmp_path / "a.parquet", column, url=column))
    assert found.texts == ["ok", "\ufffd bad", None, "caf\u00e9", "\ufffd\ufffd\ufffd"]
    assert found.urls == found.texts
    assert found.repaired == [False, True, False, False, True]
    assert found.num_bytes == count_bytes(found.texts)


def test_invalid_bytes_in_a_text_file_are_replaced_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\ncaf\xe9\n\ntwo")
    assert sum(read(path).repaired) == 1
    found = read(path, blank_line_documents=True)
    assert (found.texts, found.repaired) == (["one", "caf\ufffd", "two"], [False, True, False])


# Kinds of parquet columns


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_every_kind_of_text_column_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    texts = [*TEXTS, None]
    column = pa.array(texts)
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column
    found = read(write_parquet(tmp_path / "a.parquet", column.cast(kind)))
    assert (found.texts, found.urls) == (texts, [None] * len(texts))
    assert found.num_bytes == count_bytes(texts)


def test_a_column_of_nulls_and_a_url_that_is_no_text(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.nulls(3), url=[1, 2, 3])
    assert read(path) == Found([None] * 3, [None] * 3, [0, 1, 2], [False] * 3, 0)


def test_the_text_may_be_the_url_column(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array(["a"]), url=["http://x"])
    found = read(path, "url")
    assert (found.texts, found.urls) == (["http://x"], ["http://x"])


# Batches and large documents


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_batches_are_bounded_by_count_and_bytes(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("batches", "formats"):
        monkeypatch.setattr(f"prep.readers.{module}.MAX_BATCH_BYTES", 10_000)
    texts: list[str | None] = ["s"] * 2500 + ["long " * 1000] * 10 + ["s"] * 10
    path = tmp_path / f"a{suffix}"
    if suffix == ".jsonl":
        write_lines(path, texts)
    else:
        write_parquet(path, pa.array(texts), url=[str(row) for row in range(len(texts))])
    batches = list(read_documents(Piece(str(path), "a"), "content"))
    assert [text for batch in batches for text in batch.texts.tolist()] == texts
    assert [row for batch in batches for row in batch.rows] == list(range(len(texts)))
    assert max(len(batch.texts) for batch in batches) == 1000
    if suffix == ".parquet":
        assert [url for batch in batches for url in batch.urls.tolist()] == [
            *map(str, range(len(texts)))
        ]
    assert max(batch.num_bytes.sum() for batch in batches) < 15_000


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".parquet", ".txt"])
def test_a_document_of_100_mb_is_read(tmp_path: Path, suffix: str) -> None:
    text = "0123456789" * 10_000_000
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        write_parquet(path, pa.array(["before", text, "after"]))
    elif suffix == ".txt":
        path.write_text(text)
    else:
        write_lines(path, ["before", text, "after"])
    found = read(path)
    assert found.texts[len(found.texts) // 2] == text
    assert len(found.texts) == (1 if suffix == ".txt" else 3)


@pytest.mark.parametrize(
    "line",
    [
        b'{"content": "caf\\u00e9 \xf0\x9f\x99\x82 \\n", "url": "u", "n": [1, {"a": 2}]}',
        b'{"content": "no url"}',
        b'{"content": "bad \xff bytes", "url": "u"}',
        b'{"content": "a surrogate \\ud83d alone"}',
        b'{"content": "a url that is no text", "url": 5}',
        b'{"content": null}',
        b'{"content": "twice", "content": "then"}',
        b'{"content": ""}',
    ],
)
def test_a_long_line_is_read_like_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(line + b"\n" + line)
    short = read(path)
    monkeypatch.setattr("prep.readers.objects._LONG_BYTES", 1)
    assert read(path) == short


def test_a_document_that_is_too_large_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("batches", "items"):
        monkeypatch.setattr(f"prep.readers.{module}.MAX_DOCUMENT_BYTES", 3 << 20)
    text = "word " * (1 << 20)
    paths = {
        "line 2: a document of more than 3 MiB": write_lines(tmp_path / "a.jsonl", ["a", text]),
        "row 1: a document of more": write_parquet(tmp_path / "a.parquet", pa.array(["a", text])),
        "use --blank-line-documents": tmp_path / "a.txt",
    }
    paths["use --blank-line-documents"].write_text(text)
    for message, path in paths.items():
        with pytest.raises(ValueError, match=message):
            read(path)
    paths["use --blank-line-documents"].write_text("word\n" * (1 << 20))
    with pytest.raises(ValueError, match="block 0: a document of more"):
        read(paths["use --blank-line-documents"], blank_line_documents=True)


# Pieces


LINES = b"".join(b'{"content": "line %d %s"}\n' % (i, b"x" * (i % 50)) for i in range(500))


@pytest.mark.parametrize(
    "data",
    [
        LINES,
        LINES[:-1],
        LINES.replace(b"\n", b"\r\n"),
        LINES.replace(b"}\n", b"}\n\n\r\n"),
        b"\xef\xbb\xbf" + LINES,
        LINES + b'{"content": "' + b"long " * 5000 + b'"}\n' + LINES,
        b"\n" * 500 + LINES,
    ],
    ids=["plain", "no-last-newline", "crlf", "blank-lines", "mark", "long-line", "blank-start"],
)
@pytest.mark.parametrize("max_bytes", [1, 37, 1000, 9999, 1_000_000])
def test_the_pieces_of_a_jsonl_are_the_file(tmp_path: Path, data: bytes, max_bytes: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    pieces = split_file(path, "name", max_bytes)
    assert join(pieces) == read(path)
    assert len(pieces) > 1 or max_bytes >= len(data)
    if len(pieces) > 1:
        assert pieces[0].start == 0
        assert pieces[-1].stop == len(data)
        assert all(a.stop == b.start for a, b in pairwise(pieces))
    assert {piece.name for piece in pieces} == {"name"}


def test_pieces_of_a_jsonl_are_about_as_large_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    pieces = split_file(path, "a", 4000)
    sizes = [(piece.stop or 0) - piece.start for piece in pieces]
    assert len(pieces) == -(-len(LINES) // 4000)
    assert all(abs(size - len(LINES) / len(pieces)) < 200 for size in sizes)


@pytest.mark.parametrize("max_bytes", [1, 10_000, 1_000_000])
def test_the_pieces_of_a_parquet_file_are_the_file(tmp_path: Path, max_bytes: int) -> None:
    texts = [f"document {i} " * (i % 40) for i in range(1050)]
    path = write_parquet(tmp_path / "a.parquet", pa.array(texts), row_group_size=100)
    pieces = split_file(path, "a", max_bytes)
    assert len(pieces) == {1: 11, 1_000_000: 1}.get(max_bytes, len(pieces))
    assert 1 < len(pieces) < 11 or max_bytes != 10_000
    assert join(pieces) == read(path)
    assert join(pieces).rows == list(range(1050))


def test_pieces_of_a_parquet_file_are_about_as_large_as_asked(tmp_path: Path) -> None:
    texts = ["the same in every group"] * 1000
    path = write_parquet(tmp_path / "a.parquet", pa.array(texts), row_group_size=100)
    group_bytes = pq.read_metadata(path).row_group(0).column(0).total_compressed_size
    pieces = split_file(path, "a", 3 * group_bytes + 1)
    assert [(piece.start, piece.stop) for piece in pieces] == [(0, 3), (3, 6), (6, 9), (9, 10)]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".txt"])
def test_other_files_are_not_cut(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"x" * 5000)
    assert split_file(path, "a", 10) == [Piece(str(path), "a")]


def test_a_file_that_shrank_or_moved_since_it_was_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    pieces = split_file(path, "a", 4000)
    path.write_bytes(LINES[: len(LINES) // 2].rpartition(b"\n")[0] + b"\n")
    with pytest.raises(ValueError, match=r"a.jsonl: was changed since it was planned"):
        join(pieces)


# Estimates


def test_estimates_of_the_text(tmp_path: Path) -> None:
    texts = ["some words " * 50] * 100
    for suffix in (".jsonl", ".jsonl.gz"):
        path = write_lines(tmp_path / f"a{suffix}", [*texts])
        size = path.stat().st_size
        assert estimate_text_bytes(path, "content") == size * (4 if suffix == ".jsonl.gz" else 1)
    different = [f"{i} " * 200 for i in range(100)]
    path = write_parquet(tmp_path / "a.parquet", pa.array(different), more=["y" * 900] * 100)
    assert estimate_text_bytes(path, "content") == pytest.approx(count_bytes([*different]), rel=0.1)


# Damage, and what the errors say


def damage_parquet_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:3000] = bytes(2900)
    path.write_bytes(bytes(data))


def cut(share: float) -> Callable[[Path], None]:
    def cut_file(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return cut_file


def flip_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".parquet", cut(0.5)),
        (".parquet", cut(0.0)),
        (".parquet", damage_parquet_page),
        (".parquet", lambda path: path.write_bytes(b"this is no parquet file")),
        (".jsonl.gz", cut(0.5)),
        (".jsonl.gz", cut(0.999)),
        (".jsonl.gz", flip_middle),
        (".jsonl.gz", lambda path: path.write_bytes(b'{"content": "not packed"}\n')),
        (".jsonl.zst", cut(0.5)),
        (".jsonl.zst", cut(0.999)),
        (".jsonl.zst", lambda path: path.write_bytes(b'{"content": "not packed"}\n')),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(
    tmp_path: Path, suffix: str, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / f"a{suffix}"
    texts = [f"{i * 7919 % 10007} words" for i in range(5000)]
    if suffix == ".parquet":
        write_parquet(path, pa.array(texts))
    else:
        write_lines(path, [*texts])
    damage(path)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "damaged, cut short, or not what its name says" in message or "line " in message


def test_a_multi_frame_zst_is_read_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    frames = [b'{"content": "%d"}\n' % i for i in range(5)]
    path.write_bytes(b"".join(map(zstandard.compress, [*frames, b"", b'{"content": "last"}'])))
    assert read(path).texts == ["0", "1", "2", "3", "4", "last"]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, frames)))
    assert len(read(tmp_path / "a.jsonl.gz").texts) == 5


def test_zeros_behind_gzip_are_padding(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    members = [gzip.compress(b'{"content": "%d"}\n' % i) for i in range(3)]
    zeros = bytes(3 << 20)
    for data in (members[0] + zeros, bytes(100).join(members) + zeros, members[0] + b"\0"):
        path.write_bytes(data)
        assert read(path).texts == [str(i) for i in range(len(read(path).texts))]
    assert len(read(path).texts) == 1
    for data in (zeros, members[0] + b"\0garbage", members[0] + zeros + members[1][:-3]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a.jsonl.gz: damaged, cut short, or not what its"):
            read(path)


@pytest.mark.parametrize("window_log", [10, 27, 28, 31])
def test_a_zst_is_read_whatever_its_window(tmp_path: Path, window_log: int) -> None:
    path = tmp_path / "a.jsonl.zst"
    options = zstandard.ZstdCompressionParameters.from_level(
        1, window_log=window_log, write_content_size=False, enable_ldm=True
    )
    # A small table: only the window is what the reader needs.
    lines = b"".join(b'{"content": "%d"}\n' % i for i in range(20_000))
    packer = zstandard.ZstdCompressor(compression_params=options).compressobj()
    data = packer.compress(lines) + packer.flush()
    if window_log > 27:
        with pytest.raises(zstandard.ZstdError, match="too much memory"):
            zstandard.ZstdDecompressor().stream_reader(data).read()
    path.write_bytes(zstandard.compress(b'{"content": "first"}\n') + data)
    assert read(path).texts == ["first", *map(str, range(20_000))]
    path.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"a.jsonl.zst: damaged, cut short"):
        read(path)


@pytest.mark.parametrize("suffix", [f".jsonl{packing}" for packing in PACKERS])
def test_a_compressed_file_cut_at_any_byte_is_told(tmp_path: Path, suffix: str) -> None:
    path = write_lines(tmp_path / f"a{suffix}", ["some words"] * 20)
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd" if ".zst" in suffix else b""
    data = skippable + path.read_bytes() + skippable
    path.write_bytes(data)
    assert len(read(path).texts) == 20
    whole = len(data) - len(skippable)
    for size in range(1, len(data)):
        path.write_bytes(data[:size])
        if size in (whole, len(skippable)):
            continue
        with pytest.raises(ValueError, match=r"damaged, cut short, or not what its name says"):
            read(path)


@pytest.mark.parametrize("read_bytes", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("suffix", PACKERS)
def test_a_stream_is_whole_or_an_error_wherever_it_is_cut_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, read_bytes: int
) -> None:
    monkeypatch.setattr("prep.files.streams._READ_BYTES", read_bytes)
    path = tmp_path / "a"
    content = random.Random(0).randbytes(60)  # Stored as it is, as it cannot be compressed.
    packed = pack(content, suffix)
    for size in range(1, 2 * len(packed) + 1):
        path.write_bytes((packed * 2)[:size])
        with open_stream(path, COMPRESSIONS[suffix]) as file:
            if size % len(packed):
                with pytest.raises(OSError, match=r"stream|check|decompress|data"):
                    file.read()
            else:
                assert file.read() == content * (size // len(packed))


def test_too_little_memory_for_a_window_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "a.jsonl.zst", ["a"])
    monkeypatch.setattr("prep.files.streams._MAX_WINDOW_BYTES", 1 << 10)
    packer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    path.write_bytes(packer.compress(b'{"content": "a"}\n' * 9000) + packer.flush())
    with pytest.raises(ValueError, match=r"a.jsonl.zst: there is not enough memory to read it; t"):
        read(path)


def test_a_key_with_dots_is_that_of_an_inner_object(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"json": {"text": "inner"}, "url": "http://x"}\n'
        '{"json.text": "flat", "json": {"text": "inner"}}\n'
        '{"json": null}\n{"json": {"text": null}}\n'
        '{"json": {"a": {"b.c": 1}, "text": "last"}}\n'
    )
    found = read(path, "json.text")
    assert found.texts == ["inner", "flat", None, None, "last"]
    assert found.urls[0] == "http://x"
    path.write_text('{"a": {"b.c": "one", "b": {"c": "other"}}}\n{"a": {"b": {"c": "two"}}}\n')
    assert read(path, "a.b.c").texts == ["one", "two"]
    for line, message in (
        ({"json": {}}, "no key 'json.text'; the keys are json; name the right one with --text-col"),
        ({"json": "a"}, "no key 'json.text'; the keys are json"),
        ({"json": {"text": {"a": 1}}}, "'json.text' holds an object; expected text"),
    ):
        path.write_text(json.dumps(line))
        with pytest.raises(ValueError, match=f"line 1: {message}"):
            read(path, "json.text")


@pytest.mark.parametrize("suffix", [".ndjson", ".jsonl", ".jsonl.gz", ".json", ".json.gz"])
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'[{"content": "a"}, {"content": "b"}]', "is one JSON list"),
        (b'\xef\xbb\xbf\n[\n  {"content": "a"}\n]\n', "is one JSON list"),
        (b'[{"content": "' + b"long " * 5000 + b'"}]', "is one JSON list"),
        (b'{\r\n  "content": "a"\r\n}\r\n', "is JSON over several lines"),
    ],
)
def test_json_that_is_not_lines_is_told_with_what_makes_lines_of_it(
    tmp_path: Path, suffix: str, content: bytes, found: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(pack(content, suffix))
    if found == "is one JSON list" and ".json" in (suffix, path.with_suffix("").suffix):
        assert len(read(path).texts) == content.count(b"content")
        return
    with pytest.raises(ValueError, match=rf"{found}; expected one JSON object on each line, as jq"):
        read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"content": ', r"line 3: not JSON \(Expecting value at character \d+\); each line must"),
        (b'["a list"]', "line 3: holds a list; each line must be one JSON object"),
        (b"[" * 100_000, "line 3: JSON that cannot be read"),
        (b'{"text": "a", "id": 1}', "line 3: no key 'content'; the keys are text, id; name the"),
        (b"{}", "line 3: no key 'content'; the keys are none; name the right one with --text-c"),
        (b'{"content": 5}', "line 3: 'content' holds a number; expected text; name the right key"),
        (b'{"content": {"a": 1}}', "line 3: 'content' holds an object; expected text"),
        (b'{"content": true}', "line 3: 'content' holds true or false; expected text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"content": "good"}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=f"a.jsonl, {message}"):
        read(path)


def test_a_bad_line_of_a_later_piece_has_its_number_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES + b"oops\n")
    with pytest.raises(ValueError, match=r"a.jsonl, line 501: not JSON"):
        join(split_file(path, "a", 1000))


def test_a_wrong_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array(["a"]), id=[1], tags=[["x"]])
    for action in (read, estimate_text_bytes):
        with pytest.raises(
            ValueError,
            match=r"a.parquet: no column 'text'; the columns are content, id, tags; name the right",
        ):
            action(path, "text")
        with pytest.raises(ValueError, match=r"the column 'id' holds int64; expected text"):
            action(path, "id")
        with pytest.raises(ValueError, match=r"the column 'tags' holds list<.*; expected text"):
            action(path, "tags")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for action in (read, lambda path: split_file(path, "a", 1)):
        with pytest.raises(ValueError, match=rf"{path}: cannot be opened \(No such file"):
            action(path)
    path.mkdir()
    with pytest.raises(ValueError, match=f"{path}: cannot be opened"):
        read(path)


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.pdf: unknown kind of file; expected .parquet, .arrow"):
        read(tmp_path / "a.pdf")
    with pytest.raises(ValueError, match=r"a.parquet.gz: unknown kind of file"):
        read(tmp_path / "a.parquet.gz")


def test_stopping_early_does_not_hang_at_exit(tmp_path: Path) -> None:
    texts = [f"document {i} " * 50 for i in range(20_000)]
    path = write_parquet(tmp_path / "a.parquet", pa.array(texts), row_group_size=1000)
    program = (
        "from prep.readers.documents import Piece;"
        "from prep.readers.formats import read_documents;"
        f"batches = read_documents(Piece({str(path)!r}, 'a'), 'content');"
        "print(len(next(batches).rows))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=400
    )
    assert (done.returncode, done.stdout) == (0, "1000\n"), done.stderr
