"""`velocity shards export`: what Megatron reads is what the set holds."""

import hashlib
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import app
from shards.edit.remove import Wanted, find_wanted, remove_documents
from shards.exchange.export import export_megatron
from shards.reader import open_shards
from tests.foreign import (
    END,
    TEXTS,
    bring_in,
    check_same,
    damage,
    ids,
    prepared,
    read_documents,
    read_megatron,
    read_tokens,
    write_nanogpt,
)

# Fixtures of all tests of token files.
__all__ = ["ids", "prepared"]


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
    with pytest.raises(ValueError, match=r"web_text_document.bin: already exists"):
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
    found = find_wanted(open_shards(folder), Wanted(hashes=frozenset(wanted)))
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
