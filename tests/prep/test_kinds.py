"""Sets made of every kind of text file: documents in = documents out, whatever is in the way."""

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import zstandard
from warcio.archiveiterator import ArchiveIterator

from prep.manifest import check_conservation
from prep.units.receipts import Audit
from shards.format import read_manifest
from tests.commands import velocity
from tests.packings import pack
from tests.servers.killed import kill_often
from tests.texts import make_texts, prepare_quietly, prepare_until, read_texts, set_bytes
from tests.warcs import make_wet, write_warc

Found = list[tuple[str | None, str]]  # the URL and the text of each document
OPENERS = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}
COUNT = 60


def make_rows(seed: int) -> list[dict[str, Any]]:
    return [
        {"content": text, "url": f"http://x.org/{seed}/{i}", "score": i}
        for i, text in enumerate(make_texts(COUNT, seed))
    ]


def write_kind(path: Path, seed: int) -> Path:
    """Documents in a file of the kind that its name says, written by another library."""
    rows = make_rows(seed)
    kind, suffix = path.name.split(".")[1], path.suffix
    if kind == "wet":
        write_warc(path, make_wet([row["content"] for row in rows]))
        data = path.read_bytes()
    elif kind == "txt":
        data = "\n".join(row["content"] for row in rows).encode()
    elif kind == "json":
        data = json.dumps(rows, indent=1).encode()
    elif kind == "jsonl":
        data = pd.DataFrame(rows).to_json(orient="records", lines=True).encode()
    else:
        separator = "," if kind == "csv" else "\t"
        data = pd.DataFrame(rows).to_csv(sep=separator, index=False).encode()
    path.write_bytes(pack(data, suffix))
    return path


def read_kind(path: Path) -> Found:
    """The same with another library than prep's, where there is one."""
    kind, suffix = path.name.split(".")[1], path.suffix
    data = OPENERS.get(suffix, bytes)(path.read_bytes())
    if kind == "txt":
        return [(None, data.decode())]
    if kind == "wet":
        return [
            (record.rec_headers["WARC-Target-URI"], record.content_stream().read().decode())
            for record in ArchiveIterator(io.BytesIO(data))
            if record.rec_type == "conversion"
        ]
    if kind in ("csv", "tsv"):
        separator = "," if kind == "csv" else "\t"
        table = pd.read_csv(io.BytesIO(data), sep=separator, na_filter=False)
    else:
        table = pd.read_json(io.BytesIO(data), lines=kind == "jsonl", dtype=False)
    return list(zip(table["url"], table["content"], strict=True))


NAMES = [
    "a.json",
    "b.csv.bz2",
    "c.tsv.xz",
    "d.wet.zst",
    "e.wet.gz",
    "f.txt.gz",
    "g.jsonl.xz",
    "h.csv",
    "i.json.bz2",
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    for seed, name in enumerate(NAMES):
        write_kind(folder / name, seed)
    return folder


OPTIONS: dict[str, Any] = {"validation_fraction": "0.1", "unit_bytes": 5000}


@pytest.fixture(scope="module")
def reference(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set that one process makes."""
    out = tmp_path_factory.mktemp("reference") / "shards"
    prepare_quietly(out, source, **OPTIONS)
    return out


def test_documents_in_are_documents_out(source: Path, reference: Path) -> None:
    expected = {name: read_kind(source / name) for name in NAMES}
    found: dict[str, dict[int, str]] = {name: {} for name in NAMES}
    for (_, name, row), text in read_texts(reference).items():
        found[name][row] = text
    for name in NAMES:
        texts = [text for _, text in sorted(found[name].items())]
        assert texts == [text for _, text in expected[name]], name
    audit = Audit(**read_manifest(reference).audit)
    check_conservation(audit)
    assert audit.documents_read == sum(map(len, expected.values())) == 8 * COUNT + 1


def test_each_kind_names_its_documents_urls(source: Path, reference: Path) -> None:
    urls: dict[str, dict[int, str | None]] = {name: {} for name in NAMES}
    for path in reference.glob("*.docs.parquet"):
        for row in pq.read_table(path).to_pylist():
            urls[row["source_file"]][row["source_row"]] = row["url"]
    for name in NAMES:
        listed = [url for _, url in sorted(urls[name].items())]
        assert listed == [url for url, _ in read_kind(source / name)], name


def test_killed_at_any_moment_the_set_is_the_same(
    source: Path, reference: Path, tmp_path: Path
) -> None:
    prepare_until("prep.manifest.check_conservation", tmp_path / "pristine", source, **OPTIONS)
    receipts = sorted((tmp_path / "pristine/.prep/units").glob("*.json"))
    assert len(receipts) > 4
    for path in receipts[1:]:
        path.unlink()
    command = ["prep", "--out", str(tmp_path / "shards"), "--input", str(source), "--workers", "1"]
    for name, value in OPTIONS.items():
        command += [f"--{name.replace('_', '-')}={value}"]
    assert len(kill_often(tmp_path / "shards", tmp_path / "pristine", command, num_kills=4)) == 4
    assert set_bytes(tmp_path / "shards") == set_bytes(reference)
    found, expected = read_manifest(tmp_path / "shards"), read_manifest(reference)
    assert (found.dataset_id, found.audit) == (expected.dataset_id, expected.audit)


def test_filters_and_a_sample_apply_to_each_kind(source: Path, tmp_path: Path) -> None:
    inputs = [source / name for name in NAMES if name[2:5] not in ("wet", "txt")]
    out = tmp_path / "filtered"
    prepare_quietly(out, *inputs, where=("score>=30",), min_chars=50, keep_url="/[0-6]/")
    kept = [
        row["content"]
        for seed, name in enumerate(NAMES)
        if source / name in inputs and seed < 7
        for row in make_rows(seed)
        if row["score"] >= 30 and len(row["content"]) >= 50
    ]
    assert sorted(read_texts(out).values()) == sorted(kept)
    prepare_quietly(tmp_path / "sampled", source, sample="0.5")
    names = {name for _, name, _ in read_texts(tmp_path / "sampled")}
    assert 2 <= len(names) < len(NAMES)


def cut_short(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip_a_bit(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        *((cut_short, name) for name in NAMES),
        # Without a checksum, a letter is another letter.
        *((flip_a_bit, name) for name in NAMES if name not in ("a.json", "h.csv")),
    ],
)
def test_a_damaged_file_is_one_line_and_can_be_left_out(
    source: Path, tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_kind(folder / "0.jsonl", 100)
    data = (source / name).read_bytes()
    if name == "h.csv":  # Within quotes: a row that is cut elsewhere is one of another width.
        data += b'"and ' * 2 + data
    (folder / name).write_bytes(damage(data))
    command = ["prep", "--out", tmp_path / "shards", "--input", folder, "--workers", 1]
    code, _, errors = velocity(*command)
    assert code == 1
    last = errors.splitlines()[-1]
    assert last.startswith(f"velocity: {folder / name}"), errors
    code, _, errors = velocity(*command, "--on-bad-document", "skip")
    assert code == 0, errors
    audit = Audit(**read_manifest(tmp_path / "shards").audit)
    check_conservation(audit)
    # A row alone is bad, and so is a record whose digest does not fit, where zstd has no checksum.
    if name not in ("h.csv", "d.wet.zst"):
        assert (audit.left_out, audit.documents_read) == ({"damaged": 1}, COUNT)
    assert audit.bad[0].startswith(name)
