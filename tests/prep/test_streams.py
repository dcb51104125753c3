"""Compressed files: every stream in them to its last byte, and nothing that is none."""

import bz2
import gzip
import lzma
import random
from pathlib import Path

import pytest

from prep.files.streams import open_stream
from prep.readers.formats import estimate_text_bytes, split_file
from prep.request import COMPRESSIONS, TEXT_FILES
from tests.packings import PACKERS, pack
from tests.reading import read, read_skipping

LINES = b"".join(b'{"content": "text %d"}\n' % i for i in range(3000))
TEXTS = [f"text {i}" for i in range(3000)]


def test_every_compression_is_one_of_these() -> None:
    assert COMPRESSIONS.keys() == PACKERS.keys()


@pytest.mark.parametrize("suffix", PACKERS)
def test_files_joined_into_one_are_read_to_the_last(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix.upper()}"
    parts = [LINES[:5000], b"", LINES[5000:20_000], LINES[20_000:]]
    path.write_bytes(b"".join(pack(part, suffix) for part in parts))
    assert read(path).texts == TEXTS
    path.write_bytes(pack(b"", suffix) * 3)
    assert read(path).texts == []


@pytest.mark.parametrize("read_bytes", [1, 3, 4, 1 << 20])
def test_zeros_are_padding_where_the_format_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: int
) -> None:
    monkeypatch.setattr("prep.files.streams._READ_BYTES", read_bytes)
    path = tmp_path / "a"
    for codec, packed, units in (
        ("gzip", gzip.compress(b"text"), 1),
        ("xz", lzma.compress(b"text"), 4),
        ("bzip2", bz2.compress(b"text"), None),
    ):
        for num_zeros in range(1, 10):
            for data, expected in ((packed, b"text"), (packed * 2, b"text" * 2)):
                path.write_bytes(data[: len(packed)] + bytes(num_zeros) + data[len(packed) :])
                with open_stream(path, codec) as file:
                    if units and num_zeros % units == 0:
                        assert file.read() == expected
                    else:
                        with pytest.raises(OSError, match=r"no padding|ends before its end|data s"):
                            file.read()


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("garbage", [b"\n", b"garbage behind it", b"\x1f", b"BZ", b"\xfd7zXZ"])
def test_what_follows_the_last_stream_is_told(tmp_path: Path, suffix: str, garbage: bytes) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(LINES, suffix) + garbage)
    with pytest.raises(ValueError, match=r"a.jsonl.*: damaged, cut short, or not what its name"):
        read(path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_a_bit_that_flips_is_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    data = pack(LINES, suffix)
    generator = random.Random(0)
    for _ in range(40):
        # A gzip header's time and name say nothing.
        place = generator.randrange(10 if suffix == ".gz" else 0, len(data))
        flipped = bytes([data[place] ^ 1 << generator.randrange(8)])
        path.write_bytes(data[:place] + flipped + data[place + 1 :])
        # What came out before the checksum was read may be bad lines.
        with pytest.raises(ValueError, match=r"a.jsonl.*: (damaged, cut|there is not enough)"):
            read_skipping(path)


def test_an_xz_that_asks_for_too_much_memory_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(b"text", preset=9))
    assert read(path).texts == ["text"]
    monkeypatch.setattr("prep.files.streams._MAX_XZ_BYTES", 32 << 20)
    with pytest.raises(
        ValueError, match=r"not enough memory to read it \(its dictionary takes more "
    ):
        read(path)


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_text_is_read_whole_or_in_blocks(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.TXT{suffix}"
    path.write_bytes(pack(b"\xef\xbb\xbf one\r\n\ntwo caf\xe9\n", suffix))
    found = read(path)
    assert (found.texts, found.rows, found.repaired) == ([" one\r\n\ntwo caf�\n"], [0], [True])
    assert read(path, blank_line_documents=True).texts == [" one", "two caf�"]
    path.write_bytes(pack("wide".encode("utf-16"), suffix))
    for blank_line_documents in (False, True):
        with pytest.raises(ValueError, match=r"is in UTF-16; convert it"):
            read(path, blank_line_documents=blank_line_documents)


@pytest.mark.parametrize("kind", TEXT_FILES)
def test_a_compressed_file_is_one_piece_of_a_few_times_its_size(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a{kind}.bz2"
    path.write_bytes(b"x\n" * 500)
    assert len(split_file(path, "a", 10)) == 1
    assert estimate_text_bytes(path, "content") == 4000
