"""Token files of nanoGPT, llm.c and Megatron: what comes in is what prep makes of the same texts.

The files are written, and Megatron's read, by code of these tests from the published layouts.
"""

import hashlib
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cli import app
from prep import import_documents, import_text, import_tokens
from prep.import_files import find_path
from shards.export import export_megatron
from shards.format import Manifest, read_manifest
from shards.reader import open_shards
from shards.remove import Wanted, find_documents, remove_documents
from shards.show import decode_document
from shards.trace import Sidecars
from shards.verify import verify_shards
from tests.runs import run_small
from tests.texts import make_texts, prepare_quietly, set_bytes, write_parquet
from tests.tiktoken_gpt2 import make_encoding

END = 50256
# One document that is long, one with a character of four bytes, one that spells <|endoftext|>.
TEXTS = [*make_texts(150), "long " * 3000 + "end", "🙂", "<|endoftext|>", *make_texts(60, seed=5)]


@pytest.fixture(scope="module")
def ids() -> list[list[int]]:
    tiktoken = make_encoding()
    return [tiktoken.encode_ordinary(text) for text in TEXTS]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What prep makes of the texts."""
    folder = tmp_path_factory.mktemp("foreign")
    source = write_parquet(folder / "texts.parquet", list(TEXTS))
    prepare_quietly(folder / "shards", source, validation_fraction="0")
    return folder / "shards"


def write_nanogpt(path: Path, ids: list[list[int]]) -> Path:
    np.array([i for document in ids for i in [*document, END]], "<u2").tofile(path)
    return path


def write_llmc(path: Path, tokens: list[int], magic: int = 20240520, version: int = 1) -> Path:
    header = struct.pack("<256i", magic, version, len(tokens), *[0] * 253)
    path.write_bytes(header + np.array(tokens, "<u2").tobytes())
    return path


def write_megatron(
    prefix: Path, documents: list[list[list[int]]], dtype: str = "<u2", code: int = 8
) -> Path:
    """Documents of sequences, as Megatron's builder writes them."""
    sequences = [sequence for document in documents for sequence in document]
    sizes = [len(sequence) for sequence in sequences]
    bounds = np.cumsum([0, *map(len, documents)])
    pointers = (np.cumsum([0, *sizes]) * np.dtype(dtype).itemsize)[:-1]
    tokens = np.array([i for sequence in sequences for i in sequence], dtype)
    tokens.tofile(f"{prefix}.bin")
    Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(sizes), len(bounds))
        + np.array(sizes, "<i4").tobytes()
        + np.array(pointers, "<i8").tobytes()
        + np.array(bounds, "<i8").tobytes()
    )
    return prefix


def read_megatron(prefix: Path) -> list[list[int]]:
    """The documents of PREFIX.bin and PREFIX.idx."""
    raw = Path(f"{prefix}.idx").read_bytes()
    assert raw[:9] == b"MMIDIDX\x00\x00"
    version, code, num_sequences, num_bounds = struct.unpack_from("<QBQQ", raw, 9)
    assert (version, code) == (1, 8)
    sizes = np.frombuffer(raw, "<i4", num_sequences, 34)
    pointers = np.frombuffer(raw, "<i8", num_sequences, 34 + 4 * num_sequences)
    bounds = np.frombuffer(raw, "<i8", num_bounds, 34 + 12 * num_sequences)
    assert len(raw) == 34 + 12 * num_sequences + 8 * num_bounds
    content = Path(f"{prefix}.bin").read_bytes()
    assert len(content) == 2 * sizes.sum()
    return [
        [
            i
            for sequence in range(first, last)
            for i in np.frombuffer(content, "<u2", sizes[sequence], pointers[sequence]).tolist()
        ]
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]


def bring_in(out: Path, *files: Path, **options: Any) -> Manifest:
    """Import files; what is said goes nowhere."""
    request = import_tokens.ImportRequest(out, tuple(map(str, files)), **options)
    return import_tokens.import_tokens(request, lambda line: None)


def read_documents(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    """The rows of a split."""
    manifest = read_manifest(folder)
    tables = [pq.read_table(folder / shard.sidecar) for shard in manifest.split(split)]
    return list(pa.concat_tables(tables).to_pylist()) if tables else []


def read_tokens(folder: Path, split: str = "train") -> list[int]:
    stream = open_shards(folder).stream(split)
    return stream.read(0, stream.num_tokens).tolist()


def check_same(folder: Path, prepared: Path, source: str) -> None:
    """The set is whole, and holds what prep made, but for names and URLs."""
    assert [fault for _, fault in verify_shards(folder) if fault] == []
    assert read_tokens(folder) == read_tokens(prepared)
    found, expected = read_documents(folder), read_documents(prepared)
    for key in ("start", "num_tokens", "source_row", "doc_hash"):
        assert [row[key] for row in found] == [row[key] for row in expected]
    assert {row["source_file"] for row in found} == {source}
    assert {row["url"] for row in found} == {None}
    audit, other = read_manifest(folder).audit, read_manifest(prepared).audit
    assert audit["text_bytes"] == other["text_bytes"]
    assert audit["documents_read"] == audit["train"] == len(TEXTS)


@pytest.fixture(params=["large blocks", "small blocks"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small blocks":
        monkeypatch.setattr(import_documents, "BLOCK_TOKENS", 97)
        monkeypatch.setattr(import_documents, "BLOCK_DOCUMENTS", 7)
        monkeypatch.setattr(import_text, "PIECE_TOKENS", 50)


@pytest.mark.usefixtures("_blocks")
def test_nanogpt_becomes_what_prep_makes(
    tmp_path: Path, ids: list[list[int]], prepared: Path
) -> None:
    path = write_nanogpt(tmp_path / "train.bin", ids)
    manifest = bring_in(tmp_path / "shards", path)
    check_same(tmp_path / "shards", prepared, "train.bin")
    [source] = manifest.content["sources"]["files"]
    assert source == {
        "name": "train.bin",
        "num_bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "rows": len(TEXTS),
    }
    assert manifest.content["tokenizer"] == read_manifest(prepared).content["tokenizer"]


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("num_files", [1, 40])
def test_llmc_documents_go_on_in_the_next_file(
    tmp_path: Path, ids: list[list[int]], prepared: Path, num_files: int
) -> None:
    tokens = [i for document in ids for i in [END, *document]]
    parts = np.array_split(np.array(tokens), num_files)
    files = [
        write_llmc(tmp_path / f"web_train_{number:06d}.bin", part.tolist())
        for number, part in enumerate(parts)
    ]
    manifest = bring_in(tmp_path / "shards", *files)
    assert read_tokens(tmp_path / "shards") == read_tokens(prepared)
    rows, expected = read_documents(tmp_path / "shards"), read_documents(prepared)
    assert [row["doc_hash"] for row in rows] == [row["doc_hash"] for row in expected]
    # A document belongs to the file that its <|endoftext|> stands in.
    starts = np.cumsum([0, *map(len, parts)])
    begins = np.cumsum([0, *(len(document) + 1 for document in ids[:-1])])
    number = np.searchsorted(starts, begins, side="right") - 1
    assert [row["source_file"] for row in rows] == [files[n].name for n in number.tolist()]
    counted: dict[str, list[int]] = {}
    for row in rows:
        counted.setdefault(row["source_file"], []).append(row["source_row"])
    assert all(found == list(range(len(found))) for found in counted.values())
    begins_cut = sum(int(part[0]) != END for part in parts)
    assert manifest.environment["import"]["joined"] == begins_cut


def test_llmc_files_that_do_not_follow_each_other_are_not_joined(
    tmp_path: Path, ids: list[list[int]]
) -> None:
    files = [
        write_llmc(tmp_path / "web_000001.bin", [*ids[1][2:], END, *ids[0], END]),
        write_llmc(tmp_path / "web_000003.bin", [*ids[2], END, *ids[3]]),
        write_llmc(tmp_path / "web_000004.bin", [END, *ids[4]]),
    ]
    manifest = bring_in(tmp_path / "shards", *files[:2], validation=(str(files[2]),))
    expected = [ids[1][2:], ids[0], ids[2], ids[3]]
    assert read_tokens(tmp_path / "shards") == [i for d in expected for i in [*d, END]]
    assert read_tokens(tmp_path / "shards", "validation") == [*ids[4], END]
    assert manifest.environment["import"]["without_beginning"] == 2
    assert manifest.environment["import"]["joined"] == 0
    # What has no token but <|endoftext|> is read and dropped, as prep does with empty texts.
    assert manifest.audit["dropped"] == {"empty": 1}
    assert manifest.audit["documents_read"] == len(expected) + 1 + 1


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(
    ("dtype", "code", "ended"),
    [("<u2", 8, True), ("<u2", 8, False), ("<i4", 4, False), ("<i8", 5, True)],
)
def test_megatron_documents_are_ended_and_their_sequences_joined(
    tmp_path: Path, ids: list[list[int]], prepared: Path, dtype: str, code: int, ended: bool
) -> None:
    end = [END] if ended else []
    documents = [[d[: n % 5], [*d[n % 5 :], *end]] for n, d in enumerate(ids)]
    prefix = write_megatron(tmp_path / "web_text_document", documents, dtype, code)
    manifest = bring_in(tmp_path / "shards", prefix)
    check_same(tmp_path / "shards", prepared, "web_text_document.bin")
    assert manifest.environment["import"]["ends_added"] == (0 if ended else len(ids))
    names = [file["name"] for file in manifest.content["sources"]["files"]]
    assert names == ["web_text_document.bin", "web_text_document.idx"]
    assert find_path(f"{prefix}.idx") == find_path(f"{prefix}.bin") == find_path(str(prefix))


def test_megatron_documents_are_parted_where_end_of_text_stands_inside(tmp_path: Path) -> None:
    documents = [[[10, 11, END, 12, END]], [[]], [[13, END, END]], [[END, 14]], []]
    prefix = write_megatron(tmp_path / "web", documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_text, "SAMPLED_DOCUMENTS", 0)  # No text of GPT-2's.
        manifest = bring_in(tmp_path / "shards", prefix)
    assert read_tokens(tmp_path / "shards") == [10, 11, END, 12, END, 13, END, 14, END]
    assert [row["source_row"] for row in read_documents(tmp_path / "shards")] == [0, 0, 2, 3]
    assert manifest.environment["import"]["parted"] == 3
    assert manifest.audit["dropped"] == {"empty": 4}


@pytest.mark.usefixtures("_blocks")
def test_documents_of_no_valid_utf8_are_known_by_their_bytes(
    tmp_path: Path, ids: list[list[int]]
) -> None:
    half = [ids[TEXTS.index("🙂")][0], 12]  # The first bytes of a character, then "-".
    good = ids[1] * 20
    path = write_nanogpt(tmp_path / "train.bin", [*ids[:40], half, good, half[:1] + good])
    manifest = bring_in(tmp_path / "shards", path)
    assert manifest.environment["import"]["not_utf8"] == 2
    rows = read_documents(tmp_path / "shards")
    # The first token of this character stands for two of its four bytes.
    first = "🙂".encode()[:2]
    assert rows[40]["doc_hash"] == hashlib.sha256(first + b"-").digest()[:16]
    text = TEXTS[1].encode() * 20
    assert rows[41]["doc_hash"] == hashlib.sha256(text).digest()[:16]
    assert rows[42]["doc_hash"] == hashlib.sha256(first + text).digest()[:16]
    assert [fault for _, fault in verify_shards(tmp_path / "shards") if fault] == []


def test_validation_is_what_is_named_or_what_the_hash_says(
    tmp_path: Path, ids: list[list[int]]
) -> None:
    train = write_nanogpt(tmp_path / "train.bin", ids[:100])
    validation = write_nanogpt(tmp_path / "val.bin", ids[100:])
    manifest = bring_in(tmp_path / "named", train, validation=(str(validation),))
    assert manifest.content["policy"]["validation_files"] == ["val.bin"]
    assert read_tokens(tmp_path / "named", "validation") == np.fromfile(validation, "<u2").tolist()
    bring_in(tmp_path / "hashed", train, validation, validation_fraction="0.2")
    source = write_parquet(tmp_path / "texts.parquet", list(TEXTS))
    prepare_quietly(tmp_path / "prepared", source, validation_fraction="0.2")
    for split in ("train", "validation"):
        tokens = read_tokens(tmp_path / "hashed", split)
        assert tokens == read_tokens(tmp_path / "prepared", split)
        assert tokens
    with pytest.raises(ValueError, match="--validation and --validation-fraction were given"):
        bring_in(tmp_path / "both", train, validation=(str(validation),), validation_fraction="0.2")


def test_an_imported_set_is_trained_on_and_shown(tmp_path: Path, ids: list[list[int]]) -> None:
    train = write_nanogpt(tmp_path / "train.bin", ids[:150])
    validation = write_nanogpt(tmp_path / "val.bin", ids[150:])
    bring_in(tmp_path / "shards", train, validation=(str(validation),), shard_tokens=4000)
    assert len(read_manifest(tmp_path / "shards").split("train")) > 1
    run_small(tmp_path / "shards", tmp_path, training__num_training_steps=2)
    shards = open_shards(tmp_path / "shards")
    document = Sidecars(shards, "train").at_index(77)
    assert decode_document(shards, "train", document) == TEXTS[77]
    digest = hashlib.sha256(TEXTS[77].encode()).hexdigest()[:32]
    assert document.doc_hash == digest


def damage(path: Path, change: Callable[[bytearray], object]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def make_damaged(folder: Path, fault: str, ids: list[list[int]]) -> tuple[list[Path], str]:
    """Files with a fault, and what the user reads."""
    path = folder / "data.bin"
    prefix = folder / "data"
    if fault in ("odd", "cut", "beyond", "shuffled", "twice", "npy"):
        write_nanogpt(path, ids)
    if fault == "odd":
        damage(path, lambda content: content.pop())
        return [path], r"data.bin: has [\d,]+ bytes; expected uint16 ids, two bytes each"
    if fault == "cut":
        damage(path, lambda content: content.__delitem__(slice(-20, None)))
        return [path], r"data.bin: ends in the id \d+; expected <\|endoftext\|> .*--add-end-of-text"
    if fault == "beyond":
        damage(path, lambda content: content.__setitem__(slice(200, 202), b"\x51\xc4"))
        return [path], r"data.bin: token 100 is the id 50257; .* velocity prep"
    if fault == "shuffled":
        letters = {letter: n for n, letter in enumerate(sorted(set("".join(TEXTS))))}
        write_nanogpt(path, [[letters[letter] for letter in text] for text in TEXTS])
        return [path], r"data.bin: its ids are not GPT-2's: of [\d,]+ that were decoded"
    if fault == "twice":
        return [path, folder / "." / "data.bin"], "is named twice"
    if fault == "npy":
        np.save(folder / "data.npy", np.zeros(10, np.uint16))
        return [folder / "data.npy"], "is numpy's .npy; expected"
    if fault == "missing":
        return [folder / "none.bin"], "none.bin: no such file"
    if fault == "llama":
        write_llmc(path, [1, 2], magic=20240801, version=7)
        return [path], r"data.bin: holds llm.c's ids of Llama 3's tokenizer \(magic 20240801\)"
    if fault == "evaluation":
        write_llmc(path, [1, 2], magic=20240522)
        return [path], "examples of an evaluation"
    if fault == "version":
        write_llmc(path, [END, 2], version=2)
        return [path], "is of llm.c's version 2; expected 1"
    if fault == "llmc short":
        write_llmc(path, [END, *ids[0], 5])
        damage(path, lambda content: content.pop())
        return [path], r"bytes; expected [\d,]+ for the \d+ ids of its header: it is cut"
    if fault == "llmc long":
        write_llmc(path, [END, *ids[0], 5])
        damage(path, lambda content: content.extend(b"ab"))
        return [path], "of its header: it is cut or damaged"
    write_megatron(prefix, [[document, [END]] for document in ids])
    index = folder / "data.idx"
    changes: dict[str, tuple[Path, Callable[[bytearray], object], str]] = {
        "magic": (index, lambda c: c.__setitem__(0, 0), "data.idx: begins with .*; expected"),
        "old": (index, lambda c: c.__setitem__(slice(0, 8), b"TNTIDX\0\0"), "of the old kind"),
        "index version": (index, lambda c: c.__setitem__(9, 2), "data.idx: is of version 2"),
        "float": (index, lambda c: c.__setitem__(17, 7), r"ids are of type 7 \(float32\)"),
        "index cut": (index, lambda c: c.pop(), r"data.idx: has [\d,]+ bytes; expected"),
        "header alone": (index, lambda c: c.__delitem__(slice(20, None)), "begins with"),
        "size": (index, lambda c: c.__setitem__(34, c[34] ^ 1), "data.idx: sequence 1 is said"),
        "last size": (
            index,
            lambda c: c.__setitem__(34 + 4 * (2 * len(ids) - 1), 9),
            r"data.bin: has [\d,]+ bytes; expected [\d,]+, by data.idx",
        ),
        "bounds": (index, lambda c: c.__setitem__(-8, c[-8] ^ 1), "its document bounds"),
        "bounds down": (index, lambda c: c.__setitem__(-10, 1), "its document bounds go down"),
        "bin cut": (prefix.with_suffix(".bin"), lambda c: c.pop(), "data.bin: has"),
    }
    damaged, change, expected = changes[fault]
    damage(damaged, change)
    return [prefix], expected


FAULTS = (
    "odd,cut,beyond,shuffled,twice,npy,missing,llama,evaluation,version,llmc short,llmc long,"
    "magic,old,index version,float,index cut,header alone,size,last size,bounds,bounds down,bin cut"
)


@pytest.mark.parametrize("fault", FAULTS.split(","))
def test_a_fault_is_named_and_nothing_is_left(
    tmp_path: Path, ids: list[list[int]], fault: str
) -> None:
    files, expected = make_damaged(tmp_path, fault, ids)
    with pytest.raises(ValueError, match=expected) as error:
        bring_in(tmp_path / "shards", *files)
    assert "\n" not in str(error.value)
    left = list((tmp_path / "shards").glob("*")) if (tmp_path / "shards").exists() else []
    assert [path.name for path in left] in ([], [".prep"])
    assert not (tmp_path / "shards" / ".prep" / "import").exists()


def test_a_format_can_be_insisted_on(tmp_path: Path, ids: list[list[int]]) -> None:
    path = write_nanogpt(tmp_path / "data.bin", ids)
    with pytest.raises(ValueError, match=r"begins with the number .*; expected 20240520"):
        bring_in(tmp_path / "shards", path, format="llmc")
    with pytest.raises(ValueError, match=r"has no data.idx beside it"):
        bring_in(tmp_path / "shards", path, format="megatron")
    with pytest.raises(ValueError, match="--format is 'gpt'; expected one of auto, nanogpt"):
        bring_in(tmp_path / "shards", path, format="gpt")
    bring_in(tmp_path / "shards", path, format="nanogpt")


def test_a_file_without_its_last_end_is_taken_where_that_is_said(
    tmp_path: Path, ids: list[list[int]]
) -> None:
    """nanoGPT's Shakespeare is one text without <|endoftext|>."""
    path = tmp_path / "train.bin"
    np.array(ids[150], "<u2").tofile(path)
    manifest = bring_in(tmp_path / "shards", path, add_end_of_text=True)
    assert read_tokens(tmp_path / "shards") == [*ids[150], END]
    assert manifest.environment["import"]["ends_added"] == 1


def test_a_text_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, ids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_documents, "MAX_DOCUMENT_TOKENS", 2000)
    monkeypatch.setattr(import_documents, "BLOCK_TOKENS", 500)
    path = write_nanogpt(tmp_path / "data.bin", ids)
    with pytest.raises(ValueError, match=r"data.bin: has 2,000 ids in a row without"):
        bring_in(tmp_path / "shards", path)
    prefix = write_megatron(tmp_path / "indexed", [[document] for document in ids])
    with pytest.raises(ValueError, match=r"indexed.bin: has 2,000 ids in a row without"):
        bring_in(tmp_path / "shards", prefix)


def test_a_file_that_changes_meanwhile_is_noticed(
    tmp_path: Path, ids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_nanogpt(tmp_path / "data.bin", ids)
    read = import_documents.TokenReader.read

    def read_and_change(reader: import_documents.TokenReader, count: int) -> Any:
        tokens = read(reader, count)
        with open(path, "ab") as file:
            file.write(b"\x50\xc4")
        return tokens

    monkeypatch.setattr(import_documents.TokenReader, "read", read_and_change)
    with pytest.raises(ValueError, match=r"data.bin: changed while it was read"):
        bring_in(tmp_path / "shards", path)


def test_nothing_is_written_over(tmp_path: Path, ids: list[list[int]]) -> None:
    path = write_nanogpt(tmp_path / "train.bin", ids)
    bring_in(tmp_path / "shards", path)
    before = (tmp_path / "shards" / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="shards: holds a set already; choose another --out"):
        bring_in(tmp_path / "shards", path)
    assert (tmp_path / "shards" / "manifest.json").read_bytes() == before
    with pytest.raises(ValueError, match=r"train.bin: is there already; nothing is written over"):
        bring_in(tmp_path, path)
    (tmp_path / "unfinished" / ".prep").mkdir(parents=True)
    (tmp_path / "unfinished" / ".prep" / "plan.json").write_text("{}")
    with pytest.raises(ValueError, match="holds the unfinished set of a velocity prep"):
        bring_in(tmp_path / "unfinished", path)


class KilledError(BaseException):
    """Stands for SIGKILL: from then on no call changes the disk."""


def kill_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """End the process, as far as the disk can tell, before its n-th change; the changes so far."""
    calls: list[str] = []

    def wrap(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) >= moment:
                raise KilledError
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    for name in ("replace", "unlink", "mkdir", "fsync", "rmdir"):
        wrap(os, name)
    wrap(shutil, "rmtree")
    return calls


def test_a_killed_import_is_done_again_from_any_moment(
    tmp_path: Path, ids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_nanogpt(tmp_path / "data.bin", ids)
    options: dict[str, Any] = {"validation_fraction": "0.2"}
    dataset_id = bring_in(tmp_path / "whole", path, **options).dataset_id
    reader = import_text.TextReader(tmp_path / "whole" / "tokenizer.json")
    monkeypatch.setattr(import_tokens, "TextReader", lambda path: reader)
    text = (tmp_path / "whole" / "tokenizer.json").read_text()
    monkeypatch.setattr(import_tokens, "build_gpt2_json", lambda: text)
    for moment in range(1, 1000):
        out = tmp_path / str(moment)
        with monkeypatch.context() as patch:
            calls = kill_at(moment, patch)
            try:
                bring_in(out, path, **options)
            except KilledError:
                pass
            else:
                assert len(calls) < moment
                break
        if (out / "manifest.json").exists():
            with pytest.raises(ValueError, match="holds a set already"):
                bring_in(out, path, **options)
        else:
            bring_in(out, path, **options)
        assert read_manifest(out).dataset_id == dataset_id
        assert set_bytes(out) == set_bytes(tmp_path / "whole")
    assert moment > 20


def test_export_is_megatrons_and_comes_back(tmp_path: Path, prepared: Path) -> None:
    prefix = tmp_path / "web_text_document"
    arguments = ["shards", "export", str(prepared), str(prefix), "--format", "megatron"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    documents = read_megatron(prefix)
    tokens = read_tokens(prepared)
    rows = read_documents(prepared)
    assert [len(document) for document in documents] == [row["num_tokens"] for row in rows]
    assert [i for document in documents for i in document] == tokens
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "web_text_document.bin",
        "web_text_document.idx",
    ]
    arguments = ["shards", "import", "--out", str(tmp_path / "back"), str(prefix)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    check_same(tmp_path / "back", prepared, "web_text_document.bin")
    with pytest.raises(ValueError, match=r"web_text_document.bin: is there already"):
        export_megatron(open_shards(prepared), "train", prefix)


def test_export_takes_one_split_of_many_shards_without_what_was_removed(
    tmp_path: Path, ids: list[list[int]]
) -> None:
    train = write_nanogpt(tmp_path / "train.bin", ids[:150])
    validation = write_nanogpt(tmp_path / "val.bin", ids[150:])
    folder = tmp_path / "shards"
    bring_in(folder, train, validation=(str(validation),), shard_tokens=4000)
    export_megatron(open_shards(folder), "validation", tmp_path / "validation")
    assert read_megatron(tmp_path / "validation") == [[*document, END] for document in ids[150:]]
    wanted = {hashlib.sha256(TEXTS[n].encode()).digest()[:16] for n in (7, 8, 149)}
    found = find_documents(open_shards(folder), Wanted(hashes=frozenset(wanted)))
    remove_documents(open_shards(folder), found, keeps_places=True)
    export_megatron(open_shards(folder), "train", tmp_path / "train-left")
    gone = {TEXTS[n] for n in (7, 8, 149)}
    left = [[*ids[n], END] for n in range(150) if TEXTS[n] not in gone]
    assert read_megatron(tmp_path / "train-left") == left


def test_export_wants_a_name_and_not_a_folder(prepared: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; expected what the files' names begin"):
        export_megatron(open_shards(prepared), "train", Path("."))


def test_a_damaged_shard_is_not_exported(tmp_path: Path, prepared: Path) -> None:
    folder = Path(shutil.copytree(prepared, tmp_path / "shards"))
    damage(folder / "train-00000.bin", lambda content: content.__setitem__(100, content[100] ^ 1))
    with pytest.raises(ValueError, match=r"train-00000.bin: its sha256 .* shards verify"):
        export_megatron(open_shards(folder), "train", tmp_path / "web")
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    with pytest.raises(ValueError, match="has no validation tokens to export"):
        export_megatron(open_shards(prepared), "validation", tmp_path / "web")
