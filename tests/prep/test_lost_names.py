"""A power cut can lose names that were not made durable: the same command again makes it whole."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from shards.format import read_manifest
from shards.inspect.verify import verify_shards
from tests.commands import velocity
from tests.texts import make_texts, prepare_quietly, set_bytes, write_jsonl, write_parquet

URL = "https://example.com/a/3"
OPTIONS = ["--unit-bytes", "1500", "--validation-fraction", "0.2", "--workers", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources: a.jsonl of several units, some of them copies, and more.jsonl."""
    folder = tmp_path_factory.mktemp("lost")
    texts = make_texts(60)
    write_parquet(folder / "a.parquet", [*texts, *texts[:9]], row_group=20)
    write_jsonl(folder / "more.jsonl", [*make_texts(30, seed=1)])
    return folder


@pytest.fixture(scope="module")
def pristine(folder: Path) -> Path:
    policy = {"unit_bytes": 1500, "validation_fraction": "0.2"}
    prepare_quietly(folder / "shards", folder / "a.parquet", **policy)
    return folder / "shards"


def assert_whole(out: Path, expected: Path) -> None:
    assert [fault for _, fault in verify_shards(out) if fault] == []
    assert read_manifest(out).dataset_id == read_manifest(expected).dataset_id
    assert set_bytes(out) == set_bytes(expected)


def finish(out: Path, expected: Path, *command: object) -> None:
    code, _, errors = velocity(*command)
    assert code == 0, errors
    assert_whole(out, expected)


def find_new(before: Path, after: Path) -> list[str]:
    return sorted(set_bytes(after).keys() - set_bytes(before).keys())


def each_state(names: list[str]) -> Iterator[tuple[int, bool]]:
    """How many of the names reached the disk, and whether the old ones stayed there as well."""
    for count in {1, len(names) // 2, len(names)}:
        yield count, False
        yield count, True


@pytest.mark.parametrize("mode", ["--keep-places", "--cut"])
def test_a_removal_whose_journal_is_lost(pristine: Path, tmp_path: Path, mode: str) -> None:
    done = Path(shutil.copytree(pristine, tmp_path / "done"))
    command = ["--url", URL, "--url", "https://example.com/a/40", mode]
    assert velocity("shards", "remove", done, *command)[0] == 0
    names = find_new(pristine, done)
    for count, stays in each_state(names):
        out = Path(shutil.copytree(pristine, tmp_path / f"{count}-{stays}"))
        (out / ".prep/version").mkdir()
        for place, name in enumerate(names):
            if place < count:
                shutil.copy(done / name, out / name)
            if place >= count or stays:
                shutil.copy(done / name, out / ".prep/version" / name)
        finish(out, done, "shards", "remove", out, *command)
    # The whole work folder may be lost as well, or versions/ be there already.
    out = Path(shutil.copytree(pristine, tmp_path / "all"))
    for name in names:
        shutil.copy(done / name, out / name)
    shutil.rmtree(out / ".prep")
    (out / "versions").mkdir()
    finish(out, done, "shards", "remove", out, *command)


def test_an_append_whose_journal_is_lost(
    pristine: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--append", "--input", folder / "more.jsonl", *OPTIONS]
    done = Path(shutil.copytree(pristine, tmp_path / "done"))
    assert velocity("prep", "--out", done, *command)[0] == 0
    begun = Path(shutil.copytree(pristine, tmp_path / "begun"))

    def stop(*_: object) -> None:
        raise OSError("the power is cut")

    moves: list[tuple[str, str]] = []
    with monkeypatch.context() as patch:
        patch.setattr(
            "prep.append.commit_version", lambda _, next: [moves.extend(next.moves), stop()]
        )
        assert velocity("prep", "--out", begun, *command)[0] == 1
    assert len(moves) >= 4
    for count, stays in each_state([name for _, name in moves]):
        out = Path(shutil.copytree(begun, tmp_path / f"{count}-{stays}"))
        for source, name in moves[:count]:
            (shutil.copy if stays else shutil.move)(out / source, out / name)
        finish(out, done, "prep", "--out", out, *command)
        assert not (out / ".prep/append").exists()
    # The sources are made into shards again if the folder of the append is lost.
    out = Path(shutil.copytree(pristine, tmp_path / "all"))
    for _, name in moves:
        shutil.copy(done / name, out / name)
    finish(out, done, "prep", "--out", out, *command)


def test_another_file_in_the_way_stays(pristine: Path, folder: Path, tmp_path: Path) -> None:
    done = Path(shutil.copytree(pristine, tmp_path / "done"))
    command = ["--append", "--input", folder / "more.jsonl", *OPTIONS]
    assert velocity("prep", "--out", done, *command)[0] == 0
    for name in find_new(pristine, done)[:2]:
        out = Path(shutil.copytree(pristine, tmp_path / name))
        (out / name).write_text("years of work")
        before = set_bytes(out)
        code, _, errors = velocity("prep", "--out", out, *command)
        assert (code, f"{name}: is in the way of a new version" in errors) == (1, True)
        assert set_bytes(out) == before
        (out / name).unlink()
        finish(out, done, "prep", "--out", out, *command)


def test_an_import_whose_note_is_lost(tmp_path: Path) -> None:
    tokens, done = tmp_path / "n.bin", tmp_path / "done"
    np.array([464, 3290, 50256, 50, 60, 70, 80, 50256, 9, 50256] * 40, np.uint16).tofile(tokens)
    command = ["--shard-tokens", "90", "--validation-fraction", "0.3"]
    assert velocity("shards", "import", "--out", done, tokens, *command)[0] == 0
    names = sorted(set_bytes(done))
    assert len(names) > 5
    for count, stays in each_state(names):
        out = tmp_path / f"{count}-{stays}"
        (out / ".prep/import").mkdir(parents=True)
        for place, name in enumerate(names):
            if place < count:
                shutil.copy(done / name, out / name)
            if place >= count or stays:
                shutil.copy(done / name, out / ".prep/import" / name)
        finish(out, done, "shards", "import", "--out", out, tokens, *command)
    # Behind the manifest, with or without the note, and a second time: nothing is left to do.
    for note in (json.dumps({"files": dict.fromkeys(names[:-1], "0" * 64)}), None):
        (done / ".prep/import").mkdir()
        if note:
            (done / ".prep/import.json").write_text(note)
        before = set_bytes(done)
        code, _, said = velocity("shards", "import", "--out", done, tokens, *command)
        assert (code, "this set is finished already; nothing was done" in said) == (0, True)
        assert set_bytes(done) == before
        assert sorted(path.name for path in (done / ".prep").iterdir()) == ["lock", "lock.holder"]
    # Files of another import, and none of this one's, are not written over.
    out = tmp_path / "other"
    (out / ".prep").mkdir(parents=True)
    (out / names[0]).write_bytes(b"other tokens")
    code, _, errors = velocity("shards", "import", "--out", out, tokens, *command)
    assert (code, f"{names[0]}: already exists; nothing is overwritten" in errors) == (1, True)
    assert (out / names[0]).read_bytes() == b"other tokens"


def test_a_pull_whose_note_is_lost(pristine: Path, tmp_path: Path) -> None:
    names = sorted(set_bytes(pristine))
    for count, stays in each_state(names):
        node = tmp_path / f"{count}-{stays}"
        (node / ".pull/tmp" if stays else node).mkdir(parents=True)
        for name in names[:count]:
            shutil.copy(pristine / name, node / name)
        finish(node, pristine, "shards", "pull", pristine, node)
        assert not (node / ".pull").exists()


def test_a_pull_of_a_later_version_whose_journal_is_lost(pristine: Path, tmp_path: Path) -> None:
    done = Path(shutil.copytree(pristine, tmp_path / "done"))
    assert velocity("shards", "remove", done, "--url", URL, "--cut")[0] == 0
    names = find_new(pristine, done)
    for count, stays in each_state(names):
        node = Path(shutil.copytree(pristine, tmp_path / f"{count}-{stays}"))
        if stays:
            (node / ".prep/version").mkdir()
            (node / ".pull/tmp").mkdir(parents=True)
        for name in names[:count]:
            shutil.copy(done / name, node / name)
        finish(node, done, "shards", "pull", done, node)


def test_a_unit_whose_receipt_is_lost(pristine: Path, folder: Path, tmp_path: Path) -> None:
    command = ["--input", folder / "a.parquet", *OPTIONS]
    for lost in ("units/00001.json", "tmp", "downloads"):
        out = Path(shutil.copytree(pristine, tmp_path / lost.replace("/", "-")))
        (out / "manifest.json").unlink()
        path = out / ".prep" / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        finish(out, pristine, "prep", "--out", out, *command)
    # Without any receipt nothing says whose the shards are, so nothing is touched. It does not come
    # to that: the folder of receipts is durable before the first shard gets its name.
    out = Path(shutil.copytree(pristine, tmp_path / "all"))
    (out / "manifest.json").unlink()
    shutil.rmtree(out / ".prep/units")
    before = set_bytes(out)
    assert "was not made by a plan" in velocity("prep", "--out", out, *command)[2]
    assert set_bytes(out) == before


def test_a_rewritten_unit_whose_new_receipt_is_lost(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, begun = tmp_path / "done", tmp_path / "begun"
    command = ["--input", folder / "a.parquet", "--dedup", "exact", *OPTIONS]
    assert velocity("prep", "--out", done, *command)[0] == 0

    def stop(*_: object) -> None:
        raise OSError("the power is cut")

    with monkeypatch.context() as patch:
        patch.setattr("prep.copies.cut.place_unit", stop)
        assert velocity("prep", "--out", begun, *command)[0] == 1
    [note, *_] = sorted((begun / ".prep/dedup").glob("*.json"))
    names = sorted(path.name for path in note.with_suffix("").iterdir())
    for count, stays in each_state(names):
        for has_note in (True, False):
            out = Path(shutil.copytree(begun, tmp_path / f"{count}-{stays}-{has_note}"))
            unit = out / ".prep/dedup" / note.stem
            for name in names[:count]:
                (shutil.copy if stays else shutil.move)(unit / name, out / name)
            if not has_note:
                unit.with_suffix(".json").unlink()
            finish(out, done, "prep", "--out", out, *command)
    # The new receipt has its name, and the old name of it is there still.
    out = Path(shutil.copytree(done, tmp_path / "both"))
    (out / "manifest.json").unlink()
    (out / ".prep/dedup").mkdir()
    shutil.copy(out / ".prep/units" / note.name, out / ".prep/dedup" / note.name)
    finish(out, done, "prep", "--out", out, *command)


# Whether the names are durable in the first place


@contextmanager
def watching(monkeypatch: pytest.MonkeyPatch, root: Path) -> Iterator[set[Path]]:
    """Check that no name below `root` changes in a folder whose own name a power cut could lose.

    Yields the paths, below `root`, whose names were made and not fsynced yet.
    """
    waiting: set[Path] = set()
    real: dict[str, Callable[..., object]] = {
        name: getattr(os, name) for name in ("mkdir", "replace", "rename", "fsync")
    }

    def name_one(path: object) -> None:
        place = Path(os.path.abspath(os.fspath(path)))  # type: ignore[call-overload]
        if root not in place.parents:
            return
        assert not waiting & set(place.parents), (place, waiting)
        waiting.add(place)

    def mkdir(path: object, *arguments: object, **options: object) -> None:
        real["mkdir"](path, *arguments, **options)
        waiting.add(Path(os.path.abspath(os.fspath(path))))  # type: ignore[call-overload]

    def replace(source: object, target: object) -> None:
        real["replace"](source, target)
        waiting.discard(Path(os.path.abspath(os.fspath(source))))  # type: ignore[call-overload]
        name_one(target)

    def fsync(descriptor: int) -> None:
        real["fsync"](descriptor)
        synced = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        waiting.difference_update({path for path in waiting if path.parent == synced})

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", mkdir)
        patch.setattr(os, "replace", replace)
        patch.setattr(os, "rename", replace)
        patch.setattr(os, "fsync", fsync)
        yield waiting


def test_no_name_is_made_where_a_power_cut_could_lose_the_folder(
    pristine: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    out, node, imported = root / "deep" / "shards", root / "node", root / "deeper" / "imported"
    root.mkdir()
    tokens = tmp_path / "n.bin"
    np.array([464, 3290, 50256], np.uint16).tofile(tokens)
    dedup = ["--dedup", "exact", *OPTIONS]
    sources = ["--input", folder / "a.parquet"]
    for command in (
        ("prep", "--out", out, *sources, *dedup),
        ("prep", "--out", out, "--append", "--input", folder / "more.jsonl", *dedup),
        ("shards", "remove", out, "--url", URL),
        ("shards", "pull", out, node),
        ("shards", "remove", out, "--url", "https://example.com/a/5"),
        ("shards", "pull", out, node),
        ("shards", "push", out, root / "far" / "bucket"),
        ("shards", "import", "--out", imported, tokens),
        ("prep", "--out", root / "parts", *sources, *dedup, "--part", "0/1"),
        ("prep", "--out", root / "parts", "--finish"),
    ):
        with watching(monkeypatch, root) as waiting:
            assert velocity(*command)[0] == 0, command
        left = {path for path in waiting if path.exists()}
        assert left == set(), command
