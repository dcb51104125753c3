"""`velocity shards import`: what comes in is what prep makes of the same texts."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from prep.foreign.files import find_path
from shards.documents import Sidecars
from shards.format import read_manifest
from shards.inspect.show import decode_document
from shards.inspect.verify import verify_shards
from shards.reader import open_shards
from tests.foreign import (
    END,
    TEXTS,
    bring_in,
    check_same,
    ids,
    prepared,
    read_documents,
    read_tokens,
    write_llmc,
    write_megatron,
    write_nanogpt,
)
from tests.runs import run_small
from tests.texts import prepare_quietly, write_parquet

# Fixtures of all tests of token files.
__all__ = ["ids", "prepared"]


@pytest.fixture(params=["large blocks", "small blocks"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small blocks":
        monkeypatch.setattr("prep.foreign.documents.BLOCK_TOKENS", 97)
        monkeypatch.setattr("prep.foreign.documents.BLOCK_DOCUMENTS", 7)
        monkeypatch.setattr("prep.foreign.text.PIECE_TOKENS", 50)


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
        patch.setattr("prep.foreign.text.SAMPLED_DOCUMENTS", 0)  # No text of GPT-2's.
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
    with pytest.raises(ValueError, match="--validation and --validation-fraction were both given"):
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
