"""Nothing is deleted, emptied or written through a symbolic link in a folder of ours."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from shards.disk.durable import write_file
from shards.exchange.storage import open_storage
from shards.format import read_manifest
from shards.inspect.verify import verify_shards
from shards.reader import open_shards
from tests.commands import velocity
from tests.texts import make_texts, prepare_quietly, set_bytes, write_jsonl, write_parquet
from train.checkpoints.folder import prune_checkpoints, save_checkpoint


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Somebody's work; nothing in it may change."""
    folder = tmp_path / "victim"
    (folder / "inner").mkdir(parents=True)
    for name in ("thesis.tex", "00000.json", "train-00000.bin", "names.json", "inner/notes"):
        (folder / name).write_text("years of work")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_parquet(tmp_path / "a.parquet", [*make_texts(30)])


def look(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refuse(victim: Path, link: Path, *arguments: object) -> None:
    """The command ends in one line that names the link, and what it leads to is as it was."""
    before = look(victim)
    code, _, errors = velocity(*arguments)
    [line] = [line for line in errors.splitlines() if line.startswith("velocity: ")]
    assert code == 1
    assert f"{link}: is a symbolic link to {victim}" in line
    assert look(victim) == before


FOLDERS = (
    ".prep,.prep/tmp,.prep/units,.prep/downloads,.prep/parts,.prep/dedup,.prep/version,.prep/append"
    ",.prep/import,.pull,.pull/tmp,versions"
)
FILES = (
    ".prep/lock,.prep/lock.holder,.prep/lock.soft,.prep/plan.json,.prep/plan.json.tmp"
    ",.prep/units/00000.json,.prep/units/00000.pending,.prep/parts/0-of-2.lock"
    ",.prep/dedup/00000.json,.prep/version/next.json,.prep/import.json,.pull/names.json,.pull/lock"
)
PLACES = [*FOLDERS.split(","), *FILES.split(",")]


def plant(folder: Path, place: str, victim: Path) -> Path:
    """A link at this place of a set's folder, to the victim or a file of it."""
    link = folder / place
    if link.is_dir():
        shutil.rmtree(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(victim if place in FOLDERS.split(",") else victim / "thesis.tex")
    return link


@pytest.mark.parametrize("place", PLACES)
def test_prep_refuses_links_in_its_folder(
    tmp_path: Path, victim: Path, source: Path, place: str
) -> None:
    out = tmp_path / "shards"
    link = plant(out, place, victim)
    refuse(victim, link, "prep", "--out", out, "--input", source, "--workers", "1")
    refuse(victim, link, "prep", "--out", out, "--input", source, "--part", "0/2")
    assert sorted(path.name for path in out.iterdir()) == [Path(place).parts[0]]


@pytest.mark.parametrize("place", [".prep", ".prep/version", ".prep/lock.holder", "versions"])
def test_commands_over_a_set_refuse_links_in_it(
    tmp_path: Path, victim: Path, source: Path, place: str
) -> None:
    out = tmp_path / "shards"
    prepare_quietly(out, source)
    more = write_jsonl(tmp_path / "more.jsonl", ["one more"])
    before = set_bytes(out)
    link = plant(out, place, victim)
    url = "https://example.com/a/3"
    refuse(victim, link, "shards", "remove", out, "--url", url)
    refuse(victim, link, "prep", "--out", out, "--append", "--input", more)
    refuse(victim, link, "shards", "push", out, tmp_path / "bucket")
    refuse(victim, link, "prep", "--out", out, "--input", source, "--workers", "1")
    if place != ".prep":
        refuse(victim, link, "prep", "--out", out, "--finish")
    assert set_bytes(out) == before
    assert [fault for _, fault in verify_shards(out) if fault] == []


@pytest.mark.parametrize("place", [".prep", ".prep/import", ".prep/import.json", ".prep/lock"])
def test_import_refuses_links(tmp_path: Path, victim: Path, place: str) -> None:
    tokens = tmp_path / "n.bin"
    np.array([464, 3290, 50256], np.uint16).tofile(tokens)
    link = plant(tmp_path / "shards", place, victim)
    refuse(victim, link, "shards", "import", "--out", tmp_path / "shards", tokens)


@pytest.mark.parametrize("place", [".pull", ".pull/tmp", ".pull/names.json", ".pull/lock.holder"])
def test_pull_refuses_links(tmp_path: Path, victim: Path, source: Path, place: str) -> None:
    prepare_quietly(tmp_path / "origin", source)
    for node in ("node", "origin"):
        link = plant(tmp_path / node, place, victim)
        refuse(victim, link, "shards", "pull", tmp_path / "origin", tmp_path / node)
        link.unlink()


def test_a_link_deep_in_a_begun_append_is_refused(
    tmp_path: Path, victim: Path, source: Path
) -> None:
    out = tmp_path / "shards"
    prepare_quietly(out, source)
    more = write_jsonl(tmp_path / "more.jsonl", ["one more"])
    link = plant(out, ".prep/append/.prep/tmp", victim / "inner")
    link.unlink()
    link.symlink_to(victim)
    refuse(victim, link, "prep", "--out", out, "--append", "--input", more)


def test_the_folder_that_is_named_may_be_a_link(tmp_path: Path, source: Path) -> None:
    (tmp_path / "disk" / "set").mkdir(parents=True)
    out, node = tmp_path / "shards", tmp_path / "node"
    out.symlink_to(tmp_path / "disk" / "set")
    more = write_jsonl(tmp_path / "more.jsonl", ["one more"])
    url = "https://example.com/a/3"
    (tmp_path / "disk" / "node").mkdir()
    node.symlink_to(tmp_path / "disk" / "node")
    for command in (
        ("prep", "--out", out, "--input", source, "--workers", "1"),
        ("prep", "--out", out, "--append", "--input", more, "--workers", "1"),
        ("shards", "remove", out, "--url", url),
        ("shards", "push", out, tmp_path / "bucket"),
        ("shards", "pull", tmp_path / "bucket", node),
    ):
        assert velocity(*command)[0] == 0, command
    assert read_manifest(node) == read_manifest(tmp_path / "disk" / "set")
    assert [fault for _, fault in verify_shards(node) if fault] == []
    assert out.is_symlink()
    assert node.is_symlink()


def test_a_link_to_a_folder_that_is_not_there_is_told(tmp_path: Path, source: Path) -> None:
    (tmp_path / "shards").symlink_to(tmp_path / "unmounted")
    code, _, errors = velocity("prep", "--out", tmp_path / "shards", "--input", source)
    assert code == 1
    assert f"shards: is a link to {tmp_path}/unmounted, where there is no folder" in errors


def test_a_shard_that_is_a_link_is_not_reported_as_removed(tmp_path: Path, source: Path) -> None:
    """The link would go, and the documents would stay where it leads to."""
    out = tmp_path / "shards"
    prepare_quietly(out, source, validation_fraction="0")
    [shard] = open_shards(out).manifest.shards
    (tmp_path / "disk").mkdir()
    for name in (shard.name, shard.sidecar):
        os.rename(out / name, tmp_path / "disk" / name)
        (out / name).symlink_to(tmp_path / "disk" / name)
    before = look(tmp_path / "disk")
    code, _, errors = velocity("shards", "remove", out, "--url", "https://example.com/a/3")
    assert code == 1
    assert f"{out}/{shard.name}: is a symbolic link to {tmp_path}/disk" in errors
    assert look(tmp_path / "disk") == before
    # What only reads follows them: sets are kept as links by other tools.
    assert velocity("shards", "verify", out)[0] == 0
    assert velocity("shards", "push", out, tmp_path / "bucket")[0] == 0


def test_shards_names_that_are_links_are_replaced_and_not_written_through(
    tmp_path: Path, victim: Path, source: Path
) -> None:
    origin, node = tmp_path / "origin", tmp_path / "node"
    prepare_quietly(origin, source, validation_fraction="0")
    velocity("shards", "pull", origin, node)
    before = look(victim)
    for name in ("train-00000.bin", "train-00000.docs.parquet", "tokenizer.json"):
        (node / name).unlink()
        (node / name).symlink_to(victim / "thesis.tex")
    assert velocity("shards", "pull", origin, node)[0] == 0
    assert set_bytes(node) == set_bytes(origin)
    (origin / "manifest.json").unlink()
    (origin / ".prep/units/00000.json").rename(origin / ".prep/units/00000.pending")
    (origin / "train-00000.bin").unlink()
    (origin / "train-00000.bin").symlink_to(victim / "train-00000.bin")
    assert (
        velocity("prep", "--out", origin, "--input", source, "--validation-fraction", "0")[0] == 0
    )
    assert not (origin / "train-00000.bin").is_symlink()
    assert set_bytes(node) == set_bytes(origin)
    assert look(victim) == before


def test_temporary_files_are_new_files(tmp_path: Path, victim: Path, source: Path) -> None:
    before = look(victim)
    (tmp_path / "x.json.tmp").symlink_to(victim / "thesis.tex")
    write_file(tmp_path / "x.json", "{}")
    (tmp_path / f".y.{os.getpid()}.tmp").symlink_to(victim / "thesis.tex")
    open_storage(tmp_path).write("y", [b"abc"])
    prepare_quietly(tmp_path / "shards", source)
    for end in ("bin", "idx"):
        (tmp_path / f"exported.{end}.tmp").symlink_to(victim / "thesis.tex")
    assert velocity("shards", "export", tmp_path / "shards", tmp_path / "exported")[0] == 0
    assert look(victim) == before
    assert (tmp_path / "y").read_bytes() == b"abc"
    assert not (tmp_path / "exported.bin").is_symlink()


def test_of_a_checkpoint_that_is_a_link_only_the_link_is_pruned(
    tmp_path: Path, victim: Path
) -> None:
    folder = tmp_path / "checkpoints"

    def fill(checkpoint: Path) -> None:
        (checkpoint / "model.safetensors").write_text("weights")

    save_checkpoint(folder, 1, fill)
    os.rename(folder / "checkpoint-1", tmp_path / "archive")
    (folder / "checkpoint-1").symlink_to(tmp_path / "archive")
    (folder / ".unfinished-checkpoint-2").symlink_to(victim)
    archived, before = look(tmp_path / "archive"), look(victim)
    prune_checkpoints(folder, save_checkpoint(folder, 2, fill), keep=1)
    assert [path.name for path in folder.iterdir()] == ["checkpoint-2"]
    assert look(tmp_path / "archive") == archived
    assert look(victim) == before
