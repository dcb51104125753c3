"""--pack best-fit: rows that cut no document that fits into one, and all that reads such sets."""

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prep.append import append_sources
from prep.policy import Policy
from prep.request import Request
from shards.documents import Sidecars
from shards.edit.remove import Wanted, find_wanted, remove_documents
from shards.format import Int64, Manifest, make_manifest, parse_manifest, read_manifest
from shards.inspect.packed import estimate_cut
from shards.inspect.show import decode_document
from shards.inspect.verify import verify_shards
from shards.packing import writer
from shards.packing.best_fit import MAX_RESTS, PADDING, fill_rows, pack
from shards.packing.writer import Packing, make_writer
from shards.reader import open_shards
from shards.sidecar import make_rows
from tests.commands import velocity
from tests.servers.killed import hash_files, kill_often
from tests.texts import (
    make_texts,
    prepare_quietly,
    prepare_until,
    read_texts,
    set_bytes,
    write_jsonl,
    write_sources,
)

END = 50256
ROW = 48
PACKED = {"pack": "best-fit", "pack_tokens": ROW}
OPTIONS = {"validation_fraction": "0.2", "unit_bytes": 14000, "shard_tokens": 2000}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("source"), 120)


@pytest.fixture(scope="module")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "shards"
    prepare_quietly(out, source, **OPTIONS, **PACKED)
    return out


@pytest.fixture(scope="module")
def plain(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "shards"
    prepare_quietly(out, source, **OPTIONS)
    return out


@dataclass
class Bin:
    """A row of the reference."""

    space: int
    touched: int
    documents: list[int] = field(default_factory=list)
    rests: list[int] = field(default_factory=list)


def pack_plainly(sizes: list[int], row_tokens: int) -> set[tuple[frozenset[int], frozenset[int]]]:
    """Best-fit decreasing, as the paper has it: each item looks at all bins."""
    bins: list[Bin] = []
    items = sorted(
        (-(size % row_tokens), number) for number, size in enumerate(sizes) if size % row_tokens
    )
    for time, (rest, number) in enumerate(items):
        is_rest = sizes[number] > row_tokens
        fitting = [
            found
            for found in bins
            if found.space >= -rest and not (is_rest and len(found.rests) == MAX_RESTS)
        ]
        # Of the least space; of these one that takes no more rests, and then the newest.
        best = min(
            fitting,
            key=lambda found: (found.space, len(found.rests) < MAX_RESTS, -found.touched),
            default=None,
        )
        if best is None:
            best = Bin(row_tokens, time)
            bins.append(best)
        (best.rests if is_rest else best.documents).append(number)
        best.space, best.touched = best.space + rest, time
    return {(frozenset(found.documents), frozenset(found.rests)) for found in bins}


@pytest.mark.parametrize("row_tokens", [2, 8, 13, 64])
def test_the_rows_are_those_of_the_plain_algorithm(row_tokens: int) -> None:
    generator = np.random.default_rng(row_tokens)
    for spread in (0.3, 1.0, 4.0):
        sizes = 1 + generator.exponential(spread * row_tokens, 150).astype(np.int64)
        rows = [row for row in fill_rows(sizes, row_tokens) if sizes[row.documents].sum() or 1]
        shared = {
            (frozenset(row.documents), frozenset(row.rests))
            for row in rows
            if any(sizes[number] % row_tokens for number in row.documents + row.rests)
        }
        assert shared == pack_plainly(sizes.tolist(), row_tokens)


@pytest.mark.parametrize("row_tokens", [2, 8, 13, 64])
def test_each_document_is_there_once_and_cut_as_seldom_as_can_be(row_tokens: int) -> None:
    generator = np.random.default_rng(row_tokens)
    for count in (0, 1, 2, 3, 400):
        sizes = 1 + generator.exponential(row_tokens, count).astype(np.int64)
        layout = pack(sizes, row_tokens)
        ends = np.cumsum(layout.num_tokens)
        starts = ends - layout.num_tokens
        is_padding = layout.numbers == PADDING
        documents = layout.numbers[~is_padding]
        assert sorted(documents.tolist()) == list(range(count))
        assert (layout.num_tokens[~is_padding] == sizes[documents]).all()
        assert (layout.num_tokens[is_padding] > 0).all()
        assert not len(ends) or ends[-1] % row_tokens == 0
        num_pieces = (ends - 1) // row_tokens - starts // row_tokens + 1
        assert (num_pieces == -(-layout.num_tokens // row_tokens)).all()
        assert (ends[is_padding] % row_tokens == 0).all()


def read_ids(folder: Path) -> dict[tuple[str, str, int], list[int]]:
    """The ids of every document by split, file and row."""
    shards = open_shards(folder)
    return {
        (split, document.source_file, document.source_row): shards.stream(split)
        .read(document.start, document.num_tokens)
        .tolist()
        for split in ("train", "validation")
        for document in Sidecars(shards, split).between(0, shards.manifest.num_tokens(split))
    }


def check_rows(folder: Path, row_tokens: int = ROW) -> None:
    """What a packed set promises, from its bytes."""
    assert [entry for entry in verify_shards(folder) if entry[1] is not None] == []
    shards = open_shards(folder)
    assert shards.manifest.row_tokens == row_tokens
    for split in ("train", "validation"):
        stream = shards.stream(split)
        entries = Sidecars(shards, split).covering(0, stream.num_tokens)
        assert [entry.start for entry in entries[1:]] == [entry.stop for entry in entries[:-1]]
        own = shards.manifest.split(split)
        paddings = [entry for entry in entries if entry.is_padding]
        assert len(paddings) == sum(shard.num_paddings for shard in own)
        assert sum(entry.num_tokens for entry in paddings) == sum(s.padding_tokens for s in own)
        for entry in paddings:
            assert set(stream.read(entry.start, entry.num_tokens).tolist()) == {END}
        documents = [entry for entry in entries if not entry.is_padding]
        assert len(documents) == sum(shard.num_documents for shard in own)
        long = [entry for entry in documents if entry.num_tokens > row_tokens]
        assert len(long) == sum(shard.num_cut for shard in own)
        for entry in documents:
            num_pieces = (entry.stop - 1) // row_tokens - entry.start // row_tokens + 1
            assert num_pieces == -(-entry.num_tokens // row_tokens)


def test_every_token_of_each_document_is_in_the_set_once(packed: Path, plain: Path) -> None:
    check_rows(packed)
    assert read_ids(packed) == read_ids(plain)
    manifest, before = read_manifest(packed), read_manifest(plain)
    assert manifest.audit == before.audit
    for split in ("train", "validation"):
        padding = sum(shard.padding_tokens for shard in manifest.split(split))
        assert manifest.num_tokens(split) - padding == before.num_tokens(split)
        assert len(manifest.split(split)) > 1
        assert max(shard.num_tokens for shard in manifest.split(split)) <= 2000
    raw = json.loads((packed / "manifest.json").read_text())
    assert (raw["schema_version"], raw["content"]["format"]["row_tokens"]) == (3, ROW)
    assert raw["totals"]["train"]["documents"] == manifest.audit["train"]


def test_what_packing_costs_is_said(
    packed: Path, source: Path, tmp_path: Path, plain: Path
) -> None:
    documents = read_ids(plain)
    sizes = np.array([len(ids) for ids in documents.values()])
    cut = estimate_cut(packed, read_manifest(packed))
    assert cut == pytest.approx(np.minimum(sizes - 1, ROW).sum() / ROW)
    code, _, errors = velocity(
        *("prep", "--input", source, "--out", tmp_path / "shards", "--workers", 1),
        *("--pack", "best-fit", "--pack-tokens", ROW),
    )
    assert code == 0
    [line] = [line for line in errors.splitlines() if line.startswith("packed: ")]
    num_cut = int((sizes > ROW).sum())
    assert f"{num_cut:,} of {len(sizes):,} documents cut, as they are longer than a row" in line
    assert f"(one after another, about {cut:,.0f} would be)" in line
    assert f"data.max_seq_length={ROW}" in errors.splitlines()[-1]
    _, output, _ = velocity("shards", "info", tmp_path / "shards")
    shards = read_manifest(tmp_path / "shards").shards
    padding = sum(shard.padding_tokens for shard in shards)
    share = padding / sum(shard.num_tokens for shard in shards)
    assert f"rows of {ROW} tokens, {padding:,} tokens of padding ({share:.2%})" in output
    _, output, _ = velocity("shards", "stats", tmp_path / "shards", "--json")
    counts = json.loads(output)
    [entry] = [entry for entry in counts["sources"] if entry["name"] == "(padding)"]
    assert (entry["documents"], entry["tokens"], entry["text_bytes"]) == (0, padding, 0)
    assert counts["total"]["documents"] == len(sizes)
    assert counts["lengths"]["max"] == sizes.max()


def test_who_does_the_work_changes_no_byte(packed: Path, source: Path, tmp_path: Path) -> None:
    manifest = prepare_quietly(tmp_path / "two", source, workers=2, **OPTIONS, **PACKED)
    assert manifest.dataset_id == read_manifest(packed).dataset_id
    assert set_bytes(tmp_path / "two") == set_bytes(packed)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (OPTIONS | PACKED).items()]
    out = tmp_path / "parts"
    part = ("prep", "--input", source, "--out", out, "--workers", 1, *options, "--part")
    for command in ((*part, "1/2"), (*part, "0/2"), ("prep", "--out", out, "--finish")):
        code, _, errors = velocity(*command)
        assert code == 0, errors
    assert set_bytes(tmp_path / "parts") == set_bytes(packed)


def write_rows(folder: Path, sizes: Int64, batches: list[int]) -> list[bytes]:
    """Documents of these sizes, given in batches that end there; the bytes of the files."""
    folder.mkdir()
    packing = Packing(16, END)
    made = make_writer(folder, "train", "train-00000", 1 << 20, 2, packing)
    ends = np.cumsum(sizes)
    first = 0
    for last in [*batches, len(sizes)]:
        start, stop = (int(ends[n - 1]) if n else 0 for n in (first, last))
        rows = make_rows(
            sizes[first:last],
            pa.array(["a"] * (last - first), pa.string()),
            np.arange(first, last),
            pa.nulls(last - first, pa.string()),
            bytes(range(16)) * (last - first),
        )
        made.append(np.arange(start, stop).astype(np.uint16), rows)
        first = last
    made.finish()
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def test_batches_change_no_byte_and_buffers_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "BUFFER_TOKENS", 100)
    monkeypatch.setattr(writer, "BUFFER_ROWS", 1)
    largest: list[int] = []

    def watch(sizes: Int64, row_tokens: int) -> object:
        largest.append(int(sizes.sum()) if len(sizes) > 1 else 0)
        return pack(sizes, row_tokens)

    monkeypatch.setattr(writer, "pack", watch)
    sizes = 1 + np.random.default_rng(0).exponential(12, 300).astype(np.int64)
    sizes[40] = 250  # More than a buffer.
    once = write_rows(tmp_path / "once", sizes, [])
    assert len(largest) > 30
    assert 80 < max(largest) <= 100
    assert write_rows(tmp_path / "often", sizes, [*range(7, 300, 7)]) == once
    assert write_rows(tmp_path / "empty", sizes, [0, 40, 40, 41]) == once


def test_limits_count_documents_and_no_padding(source: Path, tmp_path: Path) -> None:
    """Exactly those that an unpacked set has."""
    limits = {"max_tokens": 5000}
    for name, options in (("packed", PACKED), ("plain", {})):
        prepare_quietly(tmp_path / name, source, **OPTIONS, **limits, **options)
    assert read_ids(tmp_path / "packed") == read_ids(tmp_path / "plain")
    check_rows(tmp_path / "packed")


def write_copies(folder: Path) -> Path:
    """Files with exact and near copies, within each and across them."""
    texts = make_texts(80, mean_words=40)
    for number in range(3):
        near = [text + " more" for text in texts[10 * number : 10 * number + 10]]
        write_jsonl(folder / f"{number}.jsonl", [*texts[number * 20 : number * 20 + 40], *near])
    return folder


@pytest.mark.parametrize("dedup", ["exact", "near"])
def test_copies_are_dropped_before_documents_are_packed(tmp_path: Path, dedup: str) -> None:
    """Those that an unpacked set drops, in plan order; also after kills at any moment."""
    (tmp_path / "source").mkdir()
    source = write_copies(tmp_path / "source")
    for name, options in (("plain", {}), ("packed", PACKED)):
        prepare_quietly(tmp_path / name, source, dedup=dedup, **OPTIONS, **options)
    check_rows(tmp_path / "packed")
    assert read_ids(tmp_path / "packed") == read_ids(tmp_path / "plain")
    plain, manifest = read_manifest(tmp_path / "plain"), read_manifest(tmp_path / "packed")
    assert {**manifest.audit, "copies": 0} == {**plain.audit, "copies": 0}
    options = {**OPTIONS, **PACKED, "dedup": dedup}
    prepare_until("prep.manifest.drop_copies", tmp_path / "pristine", source, **options)
    options["workers"] = 1
    command = ["prep", "--out", str(tmp_path / "killed"), "--input", str(source)]
    command += [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    for one in kill_often(tmp_path / "killed", tmp_path / "pristine", command, num_kills=8):
        assert one["files"] == hash_files(tmp_path / "packed"), one["moment"]
        assert set(one["found"]) <= {None, manifest.dataset_id}


def append(out: Path, source: Path, **policy: object) -> Manifest:
    request = Request(out, policy=Policy(**policy), inputs=(str(source),), workers=1)  # type: ignore[arg-type]
    return append_sources(request, lambda line: None)


def test_later_versions_are_packed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    prepare_quietly(out, source, **OPTIONS, **PACKED)
    texts = read_texts(out)
    more = write_jsonl(tmp_path / "more.jsonl", [*make_texts(60, seed=9)])
    for options in ({}, {**PACKED, "pack_tokens": 128}):
        with pytest.raises(ValueError, match="was made with other options: pack"):
            append(out, more, **OPTIONS, **options)
    append(out, more, **OPTIONS, **PACKED)
    check_rows(out)
    texts |= {key: text for key, text in read_texts(out).items() if key[1] == "more.jsonl"}
    assert read_texts(out) == texts
    shards = open_shards(out)
    train = Sidecars(shards, "train").between(0, shards.manifest.num_tokens("train"))
    train = [document for document in train if document.num_tokens > 2]  # Those differ.
    gone, blanked = train[::5], train[1::5]
    for documents, keeps_places in ((gone, False), (blanked, True)):
        shards = open_shards(out)
        wanted = Wanted(hashes=frozenset(bytes.fromhex(d.doc_hash) for d in documents))
        remove_documents(shards, find_wanted(shards, wanted), keeps_places)
        check_rows(out)
    keys = {("train", d.source_file, d.source_row) for d in [*gone, *blanked]}
    kept = {key: text for key, text in texts.items() if key not in keys}
    found = {key: text for key, text in read_texts(out).items() if text and key not in keys}
    assert found == kept
    code, output, _ = velocity("shards", "show", out, "--document", 3)
    assert code == 0
    assert output


def test_an_export_has_documents_and_no_padding(packed: Path, plain: Path, tmp_path: Path) -> None:
    found = []
    for name, folder in (("packed", packed), ("plain", plain)):
        export = ("shards", "export", folder, tmp_path / name, "--format", "megatron")
        assert velocity(*export)[0] == 0
        tokens = np.fromfile(tmp_path / f"{name}.bin", "<u2")
        documents = np.split(tokens, np.flatnonzero(tokens == END) + 1)[:-1]
        found.append(sorted(document.tolist() for document in documents))
    assert found[0] == found[1]


def test_parts_and_indexes_of_a_packed_set(packed: Path, tmp_path: Path) -> None:
    """A part has whole rows; a passage is found in documents that a row's end cuts, too."""
    assert velocity("shards", "pull", packed, tmp_path / "part", "--part", "0/2")[0] == 0
    check_rows(tmp_path / "part")
    out = tmp_path / "shards"
    shutil.copytree(packed, out)
    shards = open_shards(out)
    train = Sidecars(shards, "train").between(0, shards.manifest.num_tokens("train"))
    longest = max(train, key=lambda document: document.num_tokens)
    assert longest.num_tokens > 3 * ROW
    code, _, errors = velocity("shards", "index", out, "--workers", 1)
    assert code == 0, errors
    (tmp_path / "text.txt").write_text(decode_document(shards, "train", longest))
    code, output, errors = velocity(
        "shards", "find", out, "--text-file", tmp_path / "text.txt", "--json"
    )
    assert code == 0, errors
    found = json.loads(output)["passages"][0]
    assert found["tokens"] == longest.num_tokens - 1
    assert found["places"][0]["doc_hash"] == longest.doc_hash
    code, output, _ = velocity("shards", "count", out, "--where", "num_tokens >= 1", "--json")
    assert code == 0
    counts = json.loads(output)
    of_train = counts["splits"]["train"]
    assert of_train["documents"] == of_train["of_documents"] == len(train)
    assert of_train["tokens"] == of_train["of_tokens"] == sum(d.num_tokens for d in train)
    assert counts["sources"].keys() == {document.source_file for document in train}


def test_documents_are_numbered_without_padding(packed: Path) -> None:
    shards = open_shards(packed)
    sidecars = Sidecars(shards, "train")
    documents = sidecars.between(0, shards.manifest.num_tokens("train"))
    assert [sidecars.at_index(number) for number in range(len(documents))] == documents
    with pytest.raises(ValueError, match=f"no document {len(documents)}; the split has"):
        sidecars.at_index(len(documents))
    # Nothing has the hash of padding.
    assert velocity("shards", "show", packed, "--doc-hash", "0" * 32)[0] == 1


def edit(folder: Path, **counts: int) -> str:
    """The manifest's text with other counts of its first shard, and hashes made anew."""
    manifest = read_manifest(folder)
    first, *others = manifest.shards
    shards = [replace(first, **counts), *others]  # type: ignore[arg-type]
    return make_manifest(manifest.content, shards, manifest.audit, manifest.environment)


def test_a_manifest_that_contradicts_its_rows_is_refused(packed: Path) -> None:
    shard = read_manifest(packed).shards[0]
    name = shard.name
    with pytest.raises(ValueError, match=f"{name} has {shard.num_tokens + 1:,} tokens; expected"):
        parse_manifest(edit(packed, num_tokens=shard.num_tokens + 1), "m")
    for counts in ({"padding_tokens": 0}, {"num_paddings": 0}, {"num_paddings": 1 << 20}):
        with pytest.raises(ValueError, match=f"{name} has .* paddings of .* which cannot be"):
            parse_manifest(edit(packed, **counts), "m")


def test_wrong_rows_are_found(packed: Path, tmp_path: Path) -> None:
    """A sidecar whose padding is not the manifest's, and one that moves a document."""
    for change in ("counts", "places"):
        out = tmp_path / change
        shutil.copytree(packed, out)
        shard = read_manifest(out).split("train")[0]
        table = pq.read_table(out / shard.sidecar)
        rows = table.to_pylist()
        if change == "counts":
            place = next(n for n, row in enumerate(rows) if row["source_file"] == "")
            rows[place]["source_file"] = "a.parquet"
        else:
            rows[0], rows[-1] = rows[-1], rows[0]
            starts = np.cumsum([0, *(row["num_tokens"] for row in rows)])[:-1]
            for row, start in zip(rows, starts.tolist(), strict=True):
                row["start"] = start
        changed = pa.Table.from_pylist(rows, table.schema)
        pq.write_table(changed.replace_schema_metadata(table.schema.metadata), out / shard.sidecar)
        raw = json.loads((out / "manifest.json").read_text())
        del raw["environment"]["sidecar_sha256"], raw["sha256_of_lines_above"]
        (out / "manifest.json").write_text(json.dumps(raw))
        [fault] = [why for name, why in verify_shards(out) if name == shard.sidecar]
        expected = "paddings of" if change == "counts" else "in two rows that fit into one"
        assert fault is not None
        assert expected in fault


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pack": "bestfit"}, "--pack is bestfit; expected best-fit, or leave the option out"),
        ({"pack_tokens": 64}, "--pack-tokens .*--pack best-fit"),
        (
            {**PACKED, "pack_tokens": 1},
            "--pack-tokens is 1; expected at least 2, and at most --shard-tokens",
        ),
        ({**PACKED, "pack_tokens": 0}, "--pack-tokens is 0; expected"),
        ({**PACKED, "shard_tokens": 47}, r"--pack-tokens is 48; .* at most --shard-tokens \(47\)"),
    ],
)
def test_what_cannot_be_packed_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(**options)  # type: ignore[arg-type]


def test_without_the_option_nothing_changes(plain: Path) -> None:
    raw = json.loads((plain / "manifest.json").read_text())
    assert raw["schema_version"] == 1
    assert not {"pack", "pack_tokens"} & raw["content"]["policy"].keys()
    assert raw["content"]["format"].keys() == {"schema_version", "token_dtype", "byte_order"}
    names = {"split", "name", "num_tokens", "num_documents", "sha256"}
    assert {frozenset(shard) for shard in raw["content"]["shards"]} == {frozenset(names)}
