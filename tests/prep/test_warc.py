"""WARC files: the text records that warcio finds, and damage that is never a silent end."""

import io
import random
from pathlib import Path

import pytest
from warcio.archiveiterator import ArchiveIterator

from prep.readers.documents import Piece
from prep.readers.formats import read_documents
from prep.text.filters import Filter
from tests.packings import pack
from tests.reading import read, read_skipping
from tests.texts import make_texts
from tests.warcs import WET_TYPE, make_wet, write_warc

END = b"\r\n\r\n"


def read_with_warcio(data: bytes) -> tuple[list[str], list[str], list[int]]:
    """The texts, URLs and numbers of a file's text records."""
    texts, urls, rows = [], [], []
    for row, record in enumerate(ArchiveIterator(io.BytesIO(data))):
        if record.rec_type in ("conversion", "resource") and record.content_type == WET_TYPE:
            texts.append(record.content_stream().read().decode("utf-8", "replace"))
            urls.append(record.rec_headers["WARC-Target-URI"])
            rows.append(row)
    return texts, urls, rows


def record(content: bytes, *fields: str, length: int | None = None) -> bytes:
    """A text record as bytes, with other fields if need be."""
    number = len(content) if length is None else length
    head = ["WARC/1.0", "WARC-Type: conversion", "Content-Type: text/plain"]
    lines = [*head, f"Content-Length: {number}", *fields]
    return "\r\n".join(lines).encode() + END + content + END


@pytest.mark.parametrize("name", ["a.warc.wet.gz", "a.wet", "a.warc.gz", "A.WARC", "a.warc.zst"])
def test_the_text_records_are_those_of_warcio(tmp_path: Path, name: str) -> None:
    texts = [*make_texts(50), "", "two\r\n\r\nWARC/1.0\r\n\r\n", "nul \0"]
    records = make_wet(texts)
    records.insert(7, ("metadata", "http://x.org/m", "application/json", b"{}"))
    records.insert(9, ("conversion", "http://x.org/p", "image/png", b"\x89PNG"))
    records.insert(3, ("resource", "http://x.org/r", WET_TYPE, b"bad \xff byte"))
    path = write_warc(tmp_path / name, records, gzip=name.endswith(".gz"))
    data = path.read_bytes()
    if name.endswith(".zst"):
        path.write_bytes(pack(data, name))
    found = read(path)
    assert (found.texts, found.urls, found.rows) == read_with_warcio(data)
    assert len(found.texts) == 54
    assert sum(found.repaired) == 1
    assert found.rows[:4] == [1, 2, 3, 4]


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_cut_at_any_byte_is_told(tmp_path: Path, packed: bool) -> None:
    path = write_warc(tmp_path / "b", make_wet(["one text", "two"]), gzip=packed)
    data = path.read_bytes()
    parts = data.split(b"\x1f\x8b\x08" if packed else b"WARC/1.0\r\n")[1:]
    starts = [data.index(part) - (3 if packed else 10) for part in parts]
    assert len(starts) == 3
    path = tmp_path / ("a.warc.gz" if packed else "a.warc")
    for size in set(range(1, len(data))) - set(starts):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"a.warc.*: damaged, cut short, or not what its name"):
            read(path)
    path.write_bytes(data)
    assert read(path).texts == ["one text", "two"]


def test_a_bit_that_flips_in_a_compressed_file_is_told(tmp_path: Path) -> None:
    path = write_warc(tmp_path / "a.wet.gz", make_wet(make_texts(20)), gzip=True)
    data = bytearray(path.read_bytes())
    generator = random.Random(0)
    expected = read(path)
    for _ in range(60):
        place, bit = generator.randrange(len(data)), 1 << generator.randrange(8)
        data[place] ^= bit
        path.write_bytes(data)
        try:
            assert read(path) == expected  # In a header's time or name, which say nothing.
        except ValueError as error:
            told = ("damaged, cut short", "is not the text that its WARC-Block-Digest")
            assert any(words in str(error) for words in told)  # noqa: PT017
        data[place] ^= bit


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (b"garbage\r\n", "record 1 does not begin with WARC/1.0 or the like"),
        (b"\r\n", "record 1 does not begin with WARC/1.0"),
        (record(b"text", length=3), "record 1 is not as long as its Content-Length says"),
        (record(b"text", length=5), "record 1 is not as long as its Content-Length says"),
        (record(b"text", length=5000), "the file ends within record 1"),
        (record(b"text", "Content-Length: -1"), "record 1 has the Content-Length '-1'"),
        (record(b"text", "Content-Length: " + "9" * 30), "record 1 has the Content-Length '9999"),
        (b"WARC/1.0\r\n" + END, "record 1 has the Content-Length ''"),
        (record(b"text", "no colon"), "the header of record 1 has a line without a colon"),
        (b"WARC/1.0\r\n" + b"x" * (2 << 20), "the header of record 1 has no end"),
        (b"\0" * 600, "record 1 does not begin with WARC/1.0"),
    ],
)
def test_what_is_no_record_is_one_line(tmp_path: Path, middle: bytes, message: str) -> None:
    path = tmp_path / "a.wet"
    path.write_bytes(record(b"first") + middle + record(b"last"))
    with pytest.raises(ValueError, match=rf"a.wet: damaged, cut short, or not .*\({message}"):
        read_skipping(path)


def test_headers_as_other_writers_make_them(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(
        b"WARC/1.1\nwarc-type:conversion\ncontent-type:\tText/Plain; charset=utf-8\n"
        b"WARC-Target-URI: <http://x/\n a>\ncontent-length:4\n\ntext\n\n"
        + record(b"", "WARC-Target-URI: http://caf\u00e9/".encode().decode("latin-1"))
        + record(b"none")
    )
    found = read(path)
    assert found.texts == ["text", "", "none"]
    assert (found.urls[0], found.urls[2]) == ("http://x/ a", None)


def test_a_digest_that_does_not_fit_is_a_bad_document(tmp_path: Path) -> None:
    path = write_warc(tmp_path / "a.wet", make_wet(["first", "middle", "last"]))
    path.write_bytes(path.read_bytes().replace(b"middle", b"muddle"))
    with pytest.raises(ValueError, match=r"a.wet, record 2: is not the text that its WARC-Block-D"):
        read(path)
    texts, bad = read_skipping(path)
    assert (texts, list(bad)) == (["first", "last"], [2])
    fits = "sha256:982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1"
    wrong = ("sha1:?", "sha1:", "sha1:\xe9", "sha256:" + 26 * "A", "SHA1:\u4f60=")
    for digest, is_right in ((fits, True), ("md5:?", True), *((text, False) for text in wrong)):
        path.write_bytes(record(b"text", f"WARC-Block-Digest: {digest}"))
        assert (read_skipping(path)[1] == {}) == is_right


def test_a_record_that_is_too_large_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prep.readers.batches.MAX_DOCUMENT_BYTES", 1 << 20)
    path = tmp_path / "a.wet.xz"
    path.write_bytes(pack(record(b"a") + record(b"long " * (1 << 20)) + record(b"b"), path.name))
    with pytest.raises(
        ValueError, match=r"record 1: a document of more than 1 MiB; each text reco"
    ):
        read(path)
    texts, bad = read_skipping(path)
    assert (texts, list(bad)) == (["a", "b"], [1])


def test_a_crawl_of_html_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = write_warc(
        tmp_path / "a.warc.gz",
        [("metadata", "http://x", "text/plain", b"a"), ("resource", "http://x", "text/html", b"b")],
        gzip=True,
    )
    message = (
        r"a.warc.gz: has no text records \(metadata 1, resource 1\); expected those of WET files: "
    )
    with pytest.raises(ValueError, match=message):
        read(path)
    assert read(write_warc(tmp_path / "empty.wet", [])).texts == []
    (tmp_path / "none.wet").write_bytes(b"")
    assert read(tmp_path / "none.wet").texts == []


def test_fields_of_the_header_are_columns_for_where(tmp_path: Path) -> None:
    records = make_wet(["a", "b"])
    records[1] = ("conversion", "http://x.org/deu", WET_TYPE, b"b")
    path = write_warc(tmp_path / "a.wet", records)
    chosen = Filter(where=["WARC-Identified-Content-Language=deu"])
    [batch] = read_documents(Piece(str(path), "a.wet"), "content", columns=chosen.columns)
    assert batch.filter(chosen.choose(batch).kept).texts.tolist() == ["b"]
    with pytest.raises(
        ValueError, match=r"no key 'lang' in any text record; the keys are fields of"
    ):
        read(path, columns=("lang",))
