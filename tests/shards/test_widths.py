"""Sets of uint32: every command reads them as wide as they are, and says so where one is not."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.documents import Sidecars
from shards.exchange.export import export_megatron
from shards.files import ShardFile
from shards.format import Manifest, read_manifest
from shards.inspect.stats import measure_set
from shards.inspect.trace import trace_samples, trace_tokens
from shards.inspect.verify import verify_shards
from shards.order import SampleOrder
from shards.reader import open_shards
from shards.sidecar import BLOCK_BYTES
from tests.commands import velocity
from tests.manifests import edit_manifest
from tests.texts import make_texts
from tests.tokenized import VALIDATION, encode, load_plain, split_of, write_set
from tests.vocabularies import build

# One long enough for damage to lie in the second MiB of its .bin: 262,144 ids of uint32.
TEXTS = [*make_texts(120), "naïve café 🙂 " * 100_000, *make_texts(30, seed=1)]
LONG = 120
END, BEGIN = "<|end_of_text|>", "<|begin_of_text|>"


@pytest.fixture(scope="module")
def ids() -> list[list[int]]:
    """The ids of each text with those before and after it."""
    tokenizer = load_plain(build("llama3"))
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    assert begin is not None
    assert end is not None
    return [[begin, *encode(tokenizer, text), end] for text in TEXTS]


@pytest.fixture(scope="module")
def finished_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide") / "set"
    write_set(folder, build("llama3"), TEXTS, END, BEGIN)
    return folder


@pytest.fixture
def copy(finished_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_set, tmp_path / "copy"))


def side(ids: list[list[int]], split: str) -> list[int]:
    """All ids of a split, in order."""
    return [i for number, part in enumerate(ids) if split_of(number) == split for i in part]


def test_the_ids_are_read_as_wide_as_the_manifest_says(
    finished_set: Path, ids: list[list[int]]
) -> None:
    manifest = json.loads((finished_set / "manifest.json").read_text(encoding="utf-8"))
    dtype = manifest["content"]["format"]["token_dtype"]
    assert (manifest["schema_version"], dtype) == (2, "uint32")
    shards = open_shards(finished_set)
    for split in ("train", "validation"):
        expected = side(ids, split)
        stream = shards.stream(split, checks_first_reads=True)
        assert stream.read(0, stream.num_tokens).tolist() == expected
        # As docs/shards.md tells anybody to read it.
        entries = [e for e in manifest["content"]["shards"] if e["split"] == split]
        parts = [np.memmap(finished_set / e["name"], dtype, "r") for e in entries]
        assert np.concatenate(parts).tolist() == expected
        windows = stream.windows(np.array([0, 17, stream.num_tokens - 40]), 40)
        assert windows.tolist() == [expected[:40], expected[17:57], expected[-40:]]
    assert max(side(ids, "train")) > 65_535


def test_info_show_and_stats(finished_set: Path, ids: list[list[int]]) -> None:
    code, out, _ = velocity("shards", "info", finished_set)
    assert code == 0
    assert "130,256 ids as uint32" in out
    url = f"https://example.com/{VALIDATION}"
    code, out, _ = velocity("shards", "show", finished_set, "--url", url)
    assert (code, out) == (0, TEXTS[VALIDATION] + "\n")
    count = len(ids[0]) + 1
    code, out, _ = velocity("shards", "show", finished_set, "--start", 0, "--tokens", count)
    assert (code, out) == (0, f"{BEGIN}{TEXTS[0]}{END}{BEGIN}\n")
    counted = measure_set(open_shards(finished_set))
    assert counted.total.text_bytes == sum(len(text.encode()) for text in TEXTS)
    flat = side(ids, "train") + side(ids, "validation")
    found = {i: int(n) for i, n in enumerate(counted.token_counts) if n}
    numbers, counts = np.unique(flat, return_counts=True)
    assert found == dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def test_verify_says_which_tokens_are_damaged(copy: Path) -> None:
    shard = next(s for s in read_manifest(copy).shards if s.num_bytes > BLOCK_BYTES)
    with open(copy / shard.name, "r+b") as file:
        file.seek(BLOCK_BYTES + 5)
        file.write(b"\xff")
    faults = [(name, fault) for name, fault in verify_shards(copy) if fault]
    assert [name for name, _ in faults] == [shard.name]
    assert "in bytes 1,048,576 to 2,097,152 (tokens 262,144 to 524,288)" in str(faults[0][1])
    stream = open_shards(copy).stream(shard.split, checks_first_reads=True)
    place = [s.name for s in stream.shards].index(shard.name)
    start = int(stream.shard_starts[place])
    stream.read(start, 262_144)
    with pytest.raises(ValueError, match=r"damaged in tokens 262,144 to "):
        stream.read(start + 262_144, 1)


def test_an_id_beyond_the_vocabulary_is_damage(copy: Path) -> None:
    """The largest id of uint32: nothing counts up to it."""
    shard = read_manifest(copy).shards[0]
    tokens = np.fromfile(copy / shard.name, "<u4")
    tokens[1] = 2**32 - 1
    tokens.tofile(copy / shard.name)
    with pytest.raises(ValueError, match=r"holds the id 4294967295 as token 1; the tokenizer has"):
        open_shards(copy).stream("train").read(0, 10)
    with pytest.raises(ValueError, match=r"holds the id 4294967295; the tokenizer has 130,256;"):
        measure_set(open_shards(copy))
    before = (copy / "manifest.json").read_bytes()
    code, _, errors = velocity("shards", "remove", copy, "--url", "https://example.com/0")
    assert code == 1
    assert "is missing or damaged, and nothing was changed" in errors
    assert (copy / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("mode", ["--keep-places", "--cut"])
def test_documents_are_removed(copy: Path, ids: list[list[int]], mode: str) -> None:
    removed = {3, VALIDATION, LONG}
    urls = [word for n in sorted(removed) for word in ("--url", f"https://example.com/{n}")]
    code, _, errors = velocity("shards", "remove", copy, *urls, mode)
    assert code == 0, errors
    end = ids[0][-1]
    gone = {n: [end] * len(ids[n]) if mode == "--keep-places" else [] for n in removed}
    left = [gone.get(n, part) for n, part in enumerate(ids)]
    shards = open_shards(copy)
    for split in ("train", "validation"):
        stream = shards.stream(split, checks_first_reads=True)
        assert stream.read(0, stream.num_tokens).tolist() == side(left, split)
    assert [fault for _, fault in verify_shards(copy) if fault] == []
    num_bytes = sum(len(text.encode()) for n, text in enumerate(TEXTS) if n not in removed)
    assert shards.manifest.audit["text_bytes"] == num_bytes
    assert measure_set(shards).total.text_bytes == num_bytes
    assert shards.manifest.begin_of_text == ids[0][0]


def tokens_of(folder: Path, manifest: Manifest, split: str) -> list[int]:
    ids: list[int] = []
    for shard in manifest.split(split):
        with ShardFile(folder, shard) as file:
            ids += file.read_tokens(0, shard.num_tokens).tolist()
    return ids


@pytest.mark.parametrize("compress", [(), ("--compress",)])
def test_it_is_pushed_and_pulled(
    finished_set: Path, ids: list[list[int]], tmp_path: Path, compress: tuple[str, ...]
) -> None:
    code, _, errors = velocity("shards", "push", finished_set, tmp_path / "there", *compress)
    assert code == 0, errors
    for name, options in {
        "whole": (),
        "validation": ("--split", "validation"),
        "part": ("--part", "1/2"),
    }.items():
        back = tmp_path / name
        code, _, errors = velocity("shards", "pull", tmp_path / "there", back, *options)
        assert code == 0, errors
        assert [fault for _, fault in verify_shards(back) if fault] == []
        manifest = read_manifest(back)
        assert manifest.token_bytes == 4
        if name != "part":
            assert tokens_of(back, manifest, "validation") == side(ids, "validation")
    back = tmp_path / "whole"
    assert tokens_of(back, read_manifest(back), "train") == side(ids, "train")
    whole, part = read_manifest(finished_set), read_manifest(tmp_path / "part")
    assert [s.name for s in part.split("train")] == [s.name for s in whole.split("train")][1::2]


def read_int32(prefix: Path) -> list[list[int]]:
    """The documents of PREFIX.bin and .idx, by Megatron's layout: ids of int32."""
    raw = Path(f"{prefix}.idx").read_bytes()
    magic, version, code, num_sequences, num_bounds = struct.unpack_from("<9sQBQQ", raw)
    assert (magic, version, code) == (b"MMIDIDX\0\0", 1, 4)
    sizes = np.frombuffer(raw, "<i4", num_sequences, 34)
    pointers = np.frombuffer(raw, "<i8", num_sequences, 34 + 4 * num_sequences)
    bounds = np.frombuffer(raw, "<i8", num_bounds, 34 + 12 * num_sequences)
    assert len(raw) == 34 + 12 * num_sequences + 8 * num_bounds
    assert bounds.tolist() == list(range(num_sequences + 1))
    content = Path(f"{prefix}.bin").read_bytes()
    assert len(content) == 4 * sizes.sum()
    return [
        np.frombuffer(content, "<i4", size, pointer).tolist()
        for size, pointer in zip(sizes.tolist(), pointers.tolist(), strict=True)
    ]


def test_it_is_exported_as_int32(finished_set: Path, ids: list[list[int]], tmp_path: Path) -> None:
    for split in ("train", "validation"):
        export_megatron(open_shards(finished_set), split, tmp_path / split)
        expected = [part for n, part in enumerate(ids) if split_of(n) == split]
        assert read_int32(tmp_path / split) == expected


def test_samples_lead_to_documents_and_back(finished_set: Path, ids: list[list[int]]) -> None:
    shards = open_shards(finished_set)
    stream = shards.stream("train")
    order = SampleOrder(stream.num_tokens, 64, seed=3)
    samples = np.arange(20)
    for sample, [(start, _)], documents in trace_samples(shards, "train", order, samples):
        window = stream.read(start, 65).tolist()
        whole = [i for d in documents for i in ids[d.source_row]]
        offset = start - documents[0].start
        assert whole[offset : offset + 65] == window
        for document in documents:
            assert sample in trace_tokens(order, document.start, document.stop, 20)
    number = next(n for n in range(len(ids)) if split_of(n) == "train")
    assert Sidecars(shards, "train").at_index(0).num_tokens == len(ids[number])


def set_dtype(name: str) -> Callable[[Any], object]:
    return lambda raw: raw["content"]["format"].update(token_dtype=name)


CONTRADICTIONS: dict[str, tuple[Callable[[Any], object], str]] = {
    "an older number": (
        lambda raw: raw.update(schema_version=1),
        "schema_version is 1; expected 2 for ids of uint32",
    ),
    "uint16 with its number": (
        lambda raw: (raw.update(schema_version=1), set_dtype("uint16")(raw)),
        "content.tokenizer has 130,256 ids, the last of a document 130,001; expected at most "
        "65,536 ids",
    ),
    "uint16": (set_dtype("uint16"), "schema_version is 2; expected 1 for ids of uint16"),
    "int64": (set_dtype("int64"), "content.format.token_dtype is int64; expected uint16 or uint32"),
    "big-endian": (
        lambda raw: raw["content"]["format"].update(byte_order="big"),
        "content.format.byte_order is big; expected little",
    ),
    "no such id before": (
        lambda raw: raw["content"]["tokenizer"].update(begin_of_text=130_256),
        "content.tokenizer has 130,256 ids, the first of a document 130,256; expected one of them",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_manifest_that_contradicts_itself_is_refused(copy: Path, case: str) -> None:
    change, message = CONTRADICTIONS[case]
    edit_manifest(copy, change)
    code, _, errors = velocity("shards", "info", copy)
    assert code == 1
    assert message in errors
    assert errors.count("\n") == 1


def test_ids_of_another_width_are_named(copy: Path) -> None:
    """As a copy that took the ids for uint16 leaves them, or one that made uint64 of them."""
    shard = read_manifest(copy).shards[0]
    tokens = np.fromfile(copy / shard.name, "<u4")
    for dtype in ("<u2", "<u8"):
        tokens.astype(dtype).tofile(copy / shard.name)
        width = np.dtype(dtype).itemsize
        found = f"has {width * len(tokens):,} bytes"
        expected = f"expected {4 * len(tokens):,} bytes, as {len(tokens):,} ids of uint32"
        with pytest.raises(ValueError, match=f"{found}; {expected}; see what else is damaged"):
            ShardFile(copy, shard)
        faults = {name: fault for name, fault in verify_shards(copy) if fault}
        assert list(faults) == [shard.name]
