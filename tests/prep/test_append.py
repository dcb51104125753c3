"""Append: new sources behind old ones, no old file touched, and no moment without a whole set."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prep.append import append_sources
from prep.policy import Policy
from prep.request import Request
from prep.units.receipts import Audit
from shards.edit.remove import Wanted, find_wanted
from shards.format import Manifest, make_manifest, read_manifest
from shards.inspect.verify import verify_shards
from shards.reader import open_shards
from tests.manifests import edit_manifest
from tests.prep.test_dedup import keep_first, read_documents
from tests.runs import run_small
from tests.servers.killed import hash_files, kill_often
from tests.shards.test_remove import remove
from tests.texts import make_texts, prepare_quietly, set_bytes, write_jsonl, write_parquet
from train.tracing.runs import trace_run

OPTIONS = {"validation_fraction": "0.2", "unit_bytes": 8000, "shard_tokens": 3000}
Texts = list[str | None]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Texts]:
    texts: dict[str, Texts] = {f"a{n}.parquet": [*make_texts(120, seed=n)] for n in range(3)}
    texts["a1.parquet"][5:5] = ["", None, texts["a0.parquet"][7]]
    return texts


@pytest.fixture(scope="module")
def more(old: dict[str, Texts]) -> dict[str, Texts]:
    """New texts, copies of each other, and copies of old ones."""
    texts: dict[str, Texts] = {f"b{n}.parquet": [*make_texts(90, seed=10 + n)] for n in range(3)}
    texts["b0.parquet"] += old["a0.parquet"][20:60] + texts["b0.parquet"][:10]
    texts["b2.parquet"] = [*texts["b0.parquet"][::2], None, "", "a last one"]
    return texts


def write(folder: Path, files: dict[str, Texts]) -> Path:
    folder.mkdir()
    for name, texts in files.items():
        write_parquet(folder / name, texts)
    return folder


@pytest.fixture(scope="module")
def folders(
    old: dict[str, Texts], more: dict[str, Texts], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Where the old sources lie, and the new ones."""
    folder = tmp_path_factory.mktemp("sources")
    return write(folder / "old", old), write(folder / "more", more)


@pytest.fixture(scope="module")
def pristine(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pristine") / "shards"
    prepare_quietly(out, folders[0], dedup="exact", **OPTIONS)
    return out


@pytest.fixture
def shards_copy(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "shards"))


def append(out: Path, *inputs: Path, workers: int = 1, **policy: object) -> tuple[Manifest, str]:
    said: list[str] = []
    options = OPTIONS | {"dedup": "exact"} | policy
    paths = tuple(map(str, inputs))
    request = Request(out, policy=Policy(**options), inputs=paths, workers=workers)  # type: ignore[arg-type]
    return append_sources(request, said.append), "\n".join(said)


def check_whole(out: Path) -> None:
    assert [entry for entry in verify_shards(out) if entry[1] is not None] == []
    manifest = read_manifest(out)
    named = {name for shard in manifest.shards for name in (shard.name, shard.sidecar)}
    assert set(set_bytes(out)) == named | {"tokenizer.json"}
    assert not (out / ".prep/append").exists()
    assert not (out / ".prep/version").exists()


def test_old_files_stay_and_new_ones_come_behind(
    pristine: Path,
    shards_copy: Path,
    folders: tuple[Path, Path],
    old: dict[str, Texts],
    more: dict[str, Texts],
) -> None:
    before = {path: path.stat().st_mtime_ns for path in shards_copy.glob("*-*.*")}
    manifest, said = append(shards_copy, folders[1])
    check_whole(shards_copy)
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    files, old_files = set_bytes(shards_copy), set_bytes(pristine)
    assert {name: files[name] for name in old_files} == old_files

    first = read_manifest(pristine)
    expected = keep_first(old | more)
    assert read_documents(shards_copy) == expected
    for split in ("train", "validation"):
        assert manifest.split(split)[: len(first.split(split))] == first.split(split)
    numbers = [int(s.name.split("-")[1].split(".")[0]) for s in first.shards]
    added = [shard for shard in manifest.shards if shard not in first.shards]
    new_numbers = [int(shard.name.split("-")[1].split(".")[0]) for shard in added]
    assert min(new_numbers) == max(numbers) + 1

    audit = Audit(**manifest.audit)
    texts = [text for texts in (old | more).values() for text in texts]
    assert audit.documents_read == len(texts)
    assert audit.train + audit.validation == len(expected)
    assert audit.dropped == {
        "null": texts.count(None),
        "empty": texts.count(""),
        "duplicate": len([text for text in texts if text]) - len(expected),
    }
    assert audit.text_bytes == sum(len(text.encode()) for text in expected.values())
    names = [file["name"] for file in manifest.content["sources"]["files"]]
    assert names == [*old, *more]
    num_new = len(expected) - len(keep_first(old))
    assert manifest.content["parent"]["dataset_id"] == first.dataset_id
    assert manifest.content["parent"]["documents"] == num_new
    assert manifest.same_places == []
    assert f"appended {num_new:,} documents" in said
    assert f"dataset_id {first.dataset_id} became {manifest.dataset_id}" in said


@pytest.mark.parametrize("workers", [3])
def test_the_number_of_workers_changes_no_byte(
    shards_copy: Path, folders: tuple[Path, Path], tmp_path: Path, workers: int
) -> None:
    straight = Path(shutil.copytree(shards_copy, tmp_path / "straight"))
    one, _ = append(straight, folders[1])
    other, _ = append(shards_copy, folders[1], workers=workers)
    assert one.dataset_id == other.dataset_id
    assert set_bytes(straight) == set_bytes(shards_copy)


def stop_before_the_join(out: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new sources are a set of their own, and nothing of it is in the old one."""

    def stop(*_: object) -> None:
        raise RuntimeError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr("prep.append.join", stop)
        with pytest.raises(RuntimeError, match="stopped here"):
            append(out, source)


@pytest.mark.parametrize(("begun", "num_kills"), [(False, 2), (True, 8)])
def test_killed_at_any_moment_the_set_is_whole(
    pristine: Path,
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    begun: bool,
    num_kills: int,
) -> None:
    """From the start, and from where the new shards come to the old ones."""
    straight = Path(shutil.copytree(pristine, tmp_path / "straight"))
    append(straight, folders[1])
    ids = {read_manifest(pristine).dataset_id, read_manifest(straight).dataset_id}
    command = ["prep", "--append", "--out", str(tmp_path / "shards"), "--input", str(folders[1])]
    command += ["--dedup", "exact", "--workers", "1"]
    command += [f"--{key.replace('_', '-')}={value}" for key, value in OPTIONS.items()]
    if begun:
        pristine = Path(shutil.copytree(pristine, tmp_path / "begun"))
        stop_before_the_join(pristine, folders[1], monkeypatch)
    tries = kill_often(tmp_path / "shards", pristine, command, num_kills)
    expected = hash_files(straight)
    for one in tries:
        assert one["files"] == expected, one["moment"]
        assert set(one["found"]) <= ids
    check_whole(tmp_path / "shards")
    assert read_manifest(tmp_path / "shards").dataset_id in ids


def test_a_second_time_it_is_done_already(shards_copy: Path, folders: tuple[Path, Path]) -> None:
    first, _ = append(shards_copy, folders[1])
    before = {path: path.stat().st_mtime_ns for path in shards_copy.glob("[!.]*.*")}
    again, said = append(shards_copy, folders[1])
    assert again == first
    assert said == f"{shards_copy}: these sources are in the set already; nothing was done"
    assert {path: path.stat().st_mtime_ns for path in shards_copy.glob("[!.]*.*")} == before
    check_whole(shards_copy)


def test_a_source_that_is_there_is_refused(
    shards_copy: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"a0.parquet \(and 2 more\): the set already has a"):
        append(shards_copy, folders[0])
    write_jsonl(tmp_path / "c.jsonl", ["another one"])
    append(shards_copy, tmp_path / "c.jsonl")
    write_jsonl(tmp_path / "c.jsonl", ["another one, changed"])
    with pytest.raises(ValueError, match=r"c.jsonl: the set already has a source of this name"):
        append(shards_copy, tmp_path / "c.jsonl")
    # Nothing of a refused append binds the next one.
    append(shards_copy, folders[1])
    check_whole(shards_copy)


def test_other_options_are_refused(shards_copy: Path, folders: tuple[Path, Path]) -> None:
    before = set_bytes(shards_copy)
    with pytest.raises(
        ValueError, match=r"dedup was exact, is now None; validation_fraction was 0.2, is now 0.5"
    ):
        append(shards_copy, folders[1], dedup=None, validation_fraction="0.5")
    assert set_bytes(shards_copy) == before
    # How the new sources are read, and how much of them, is the append's own.
    manifest, _ = append(shards_copy, folders[1], unit_bytes=3000, max_documents=50)
    parent, audit = manifest.content["parent"], Audit(**manifest.audit)
    num_copies = audit.dropped["duplicate"] - read_old(shards_copy).dropped["duplicate"]
    assert parent["documents"] + num_copies == 50
    assert manifest.content["appended"][0]["policy"]["max_documents"] == 50
    assert audit.documents_read == 363 + 50


def read_old(folder: Path) -> Audit:
    """The audit of a set's parent."""
    parent = read_manifest(folder).content["parent"]["dataset_id"]
    return Audit(**json.loads((folder / "versions" / f"{parent[:12]}.json").read_text())["audit"])


def test_without_dedup_copies_stay(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "shards"
    first = prepare_quietly(out, folders[0], **OPTIONS)
    manifest, _ = append(out, folders[1], dedup=None)
    audit = Audit(**manifest.audit)
    assert audit.train + audit.validation == audit.documents_read - 4
    assert manifest.num_tokens("train") > first.num_tokens("train")
    assert "duplicate" not in audit.dropped


def test_versions_of_all_kinds_follow_each_other(
    shards_copy: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Remove, append, remove, append: what is blank is no copy, and numbers go on."""
    remove(shards_copy, *[f"https://example.com/a2/{row}" for row in range(30, 40)])
    append(shards_copy, folders[1])
    remove(shards_copy, "https://example.com/b1/3", keeps_places=False)
    texts: Texts = [*make_texts(40, seed=2)[30:40], "new", "new"]
    write_parquet(tmp_path / "c.parquet", texts)
    here = set(read_documents(shards_copy).values())
    manifest, _ = append(shards_copy, tmp_path / "c.parquet")
    check_whole(shards_copy)
    # The texts that were removed are no copies now; of the two equal new ones one is.
    assert manifest.content["parent"]["documents"] == len(set(texts) - here) > 8
    audit = Audit(**manifest.audit)
    assert audit.dropped["removed"] == 11
    assert audit.documents_read == audit.train + audit.validation + sum(audit.dropped.values())
    kept = [json.loads(path.read_text()) for path in (shards_copy / "versions").iterdir()]
    assert len(kept) == 5
    parents = {entry["content"].get("parent", {}).get("dataset_id") for entry in kept}
    assert parents == {None} | {entry["dataset_id"] for entry in kept} - {manifest.dataset_id}


def test_a_run_over_the_old_version_is_refused(
    shards_copy: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    run_small(shards_copy, tmp_path, training__num_training_steps=1)
    append(shards_copy, folders[1])
    with pytest.raises(ValueError, match=r"was trained with dataset_id=.*, now it is"):
        run_small(shards_copy, tmp_path, training__num_training_steps=2)
    stream = open_shards(shards_copy).stream("train")
    assert stream.read(0, 10).tolist()


def test_the_steps_of_a_run_over_the_old_version_are_known(
    shards_copy: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Old tokens keep their places in an append, so a takedown can say which steps saw them."""
    run_small(shards_copy, tmp_path, training__num_training_steps=20)
    run = tmp_path / "checkpoints"
    before = trace_run(open_shards(shards_copy), run)
    windows = [before.documents_of_step(step) for step in range(1, 21)]
    seen = [[(number, start) for number, start, _ in window] for window in windows]
    document = next(iter(before.documents_of_step(7)))[2][-1]
    steps = before.steps_of_document(document)
    remove(shards_copy, "https://example.com/a1/9")
    append(shards_copy, folders[1])
    remove(shards_copy, "https://example.com/b1/3")

    after = trace_run(open_shards(shards_copy), run)
    windows = [after.documents_of_step(step) for step in range(1, 21)]
    assert [[(number, start) for number, start, _ in window] for window in windows] == seen
    assert after.steps_of_document(document) == steps
    assert 7 in steps
    assert document.url
    wanted = Wanted(frozenset(f"https://example.com/b1/{row}" for row in range(9)))
    found = find_wanted(open_shards(shards_copy), wanted)
    [new, *_] = [entry.document for entry in found if entry.shard.split == "train"]
    assert new.url
    report = remove(shards_copy, document.url, new.url, run=run)
    listed = ", ".join(map(str, steps[:20]))
    assert any(f"row {document.source_row}: steps {listed}" in line for line in report)
    assert any(line.endswith(f"b1.parquet row {new.source_row}: no step") for line in report)

    remove(shards_copy, "https://example.com/a0/3", keeps_places=False)
    with pytest.raises(ValueError, match="was trained on dataset_id"):
        trace_run(open_shards(shards_copy), run)


def test_a_failed_append_leaves_nothing_in_the_way(
    shards_copy: Path,
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises((ValueError, OSError), match=r"nowhere.parquet"):
        append(shards_copy, tmp_path / "nowhere.parquet")
    assert not (shards_copy / ".prep/append").exists()
    with pytest.raises(ValueError, match="has a source of this name"):
        append(shards_copy, folders[0])
    assert not (shards_copy / ".prep/append").exists()
    # A kill leaves the folder, in which nothing has begun.
    with monkeypatch.context() as patch:
        patch.setattr("prep.append.remove", lambda *_, **__: None)
        with pytest.raises(ValueError, match="has a source of this name"):
            append(shards_copy, folders[0])
    assert (shards_copy / ".prep/append").exists()
    assert remove(shards_copy, "https://example.com/a0/3")[0].startswith("found 1 of 1")


def test_known_files_under_another_folder_are_refused(
    shards_copy: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """All inputs and a new one: their common folder, and so their names, are other ones."""
    write_parquet(tmp_path / "d.parquet", ["a new one"])
    before = read_manifest(shards_copy)
    found = r"/a0.parquet: looks like a0.parquet, which .* [\d,]+ bytes\); give only the new files"
    with pytest.raises(ValueError, match=found):
        append(shards_copy, folders[0], tmp_path / "d.parquet")
    assert read_manifest(shards_copy) == before
    append(shards_copy, tmp_path / "d.parquet")
    check_whole(shards_copy)


def test_no_name_means_two_contents(shards_copy: Path, tmp_path: Path) -> None:
    """Also where the last shards of a version are gone in a later one."""
    for name in ("c", "d"):
        write_parquet(tmp_path / f"{name}.parquet", [f"{name} {row}" for row in range(20)])
    first, _ = append(shards_copy, tmp_path / "c.parquet")
    urls = [f"https://example.com/c/{row}" for row in range(20)]
    remove(shards_copy, *urls, keeps_places=False)
    assert len(read_manifest(shards_copy).shards) < len(first.shards)
    second, _ = append(shards_copy, tmp_path / "d.parquet")
    check_whole(shards_copy)
    hashes = {shard.name: shard.sha256 for shard in first.shards}
    for shard in second.shards:
        assert hashes.get(shard.name, shard.sha256) == shard.sha256


def test_nothing_to_append_makes_no_version(
    pristine: Path, shards_copy: Path, old: dict[str, Texts], tmp_path: Path
) -> None:
    write_parquet(tmp_path / "c.parquet", [*old["a0.parquet"][:9], "", None])
    manifest, said = append(shards_copy, tmp_path / "c.parquet")
    assert manifest == read_manifest(shards_copy) == read_manifest(pristine)
    assert "nothing to append: no document of these sources is kept (1 empty, 1 null, 9 dup" in said
    check_whole(shards_copy)
    assert not (shards_copy / "versions").exists()


def test_an_imported_set_cannot_be_appended_to(
    shards_copy: Path, folders: tuple[Path, Path]
) -> None:
    manifest = read_manifest(shards_copy)
    content = manifest.content | {"policy": {"imported": "raw"}}
    text = make_manifest(content, manifest.shards, manifest.audit, manifest.environment)
    (shards_copy / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="imported sets cannot be appended to"):
        append(shards_copy, folders[1])
    assert not (shards_copy / ".prep/append").exists()


def test_a_fraction_may_be_written_in_another_way(shards_copy: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "c.jsonl", ["another one"])
    manifest, _ = append(shards_copy, source, validation_fraction="0.200")
    assert manifest.content["policy"]["validation_fraction"] == "0.2"


def test_an_unfinished_append_is_told_and_can_be_given_up(
    shards_copy: Path,
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = read_manifest(shards_copy)
    stop_before_the_join(shards_copy, folders[1], monkeypatch)
    assert read_manifest(shards_copy) == before
    with pytest.raises(ValueError, match="an append was not finished and may contain what"):
        remove(shards_copy, "https://example.com/a0/3")
    write_jsonl(tmp_path / "c.jsonl", ["another one"])
    with pytest.raises(ValueError, match="set made with another plan: "):
        append(shards_copy, tmp_path / "c.jsonl")
    shutil.rmtree(shards_copy / ".prep/append")
    append(shards_copy, tmp_path / "c.jsonl")
    _, said = append(shards_copy, folders[1])
    assert "appended" in said
    check_whole(shards_copy)


def test_where_there_is_no_set_nothing_is_made(
    folders: tuple[Path, Path], shards_copy: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no such folder; make the shards with: velocity prep"):
        append(tmp_path / "nowhere", folders[1])
    assert not (tmp_path / "nowhere").exists()
    append(shards_copy, folders[1])
    (shards_copy / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has several versions but no manifest.json; copy the"):
        prepare_quietly(shards_copy, folders[0], dedup="exact", **OPTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["audit"].update(zz=1), r"manifest.json: audit.zz is not known to this"),
        (lambda m: m["audit"].update(train=1), r"manifest.json: its audit does not add up \("),
        (lambda m: m["audit"]["rows_by_source"].clear(), "its audit does not add up"),
        (lambda m: m["content"].update(appended=[{"x": 1}]), r"appended\[0\].hub is missing"),
        (
            lambda m: m["content"]["policy"].update(validation_fraction="1e-999999999"),
            "validation_fraction was 1e-999999999, is now",
        ),
    ],
)
def test_a_set_that_nothing_can_be_appended_to_is_refused_before_anything_is_made(
    shards_copy: Path,
    folders: tuple[Path, Path],
    change: Callable[[Any], object],
    message: str,
) -> None:
    edit_manifest(shards_copy, change)
    before = set_bytes(shards_copy)
    with pytest.raises(ValueError, match=message):
        append(shards_copy, folders[1])
    assert set_bytes(shards_copy) == before
    assert not (shards_copy / ".prep/append").exists()


def test_a_damaged_plan_is_refused(shards_copy: Path, folders: tuple[Path, Path]) -> None:
    path = shards_copy / ".prep/plan.json"
    whole = path.read_text(encoding="utf-8")
    for text, message in (
        (whole.replace('"sources"', '"sourced"'), "content.sources is missing"),
        (whole.replace("a0.parquet", "a9.parquet"), "does not hash to its plan_id"),
        (whole.replace('"0.2"', "0.2"), "validation_fraction is 0.2; expected text"),
        ("{}", "plan_id is missing"),
        ("[" * 100_000, "nested too deeply"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"plan.json: .*{message}"):
            prepare_quietly(shards_copy, folders[0], dedup="exact", **OPTIONS)
