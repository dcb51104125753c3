"""What finishes a stopped step is checked whole first: damaged or planted, it changes nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.edit.versions import begin_version
from shards.exchange.claim import UPLOAD
from shards.format import Shard, make_manifest, read_manifest
from shards.inspect.verify import verify_shards
from tests.commands import velocity
from tests.texts import make_texts, prepare_quietly, set_bytes, write_jsonl, write_parquet

URL = "https://example.com/a/3"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    return write_parquet(folder / "a.parquet", [*make_texts(60)])


@pytest.fixture(scope="module")
def pristine(source: Path) -> Path:
    """A set of some units."""
    prepare_quietly(source.parent / "shards", source, unit_bytes=3000, validation_fraction="0.2")
    return source.parent / "shards"


@pytest.fixture
def out(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "shards"))


@pytest.fixture(scope="module")
def removed(pristine: Path) -> Path:
    """The same set without a document."""
    folder = Path(shutil.copytree(pristine, pristine.parent / "removed"))
    assert velocity("shards", "remove", folder, "--url", URL)[0] == 0
    return folder


def say_one_line(*arguments: object) -> str:
    code, _, errors = velocity(*arguments)
    [line] = [line for line in errors.splitlines() if line.startswith("velocity: ")]
    assert code == 1
    return line


def make_next(out: Path, removed: Path) -> dict[str, Any]:
    """What a removal has left to do once its files are in .prep/version, which they are."""
    old, new = read_manifest(out), read_manifest(removed)
    here = {name for s in old.shards for name in (s.name, s.sidecar)}
    then = {name for s in new.shards for name in (s.name, s.sidecar)}
    work = begin_version(out)
    for name in then - here:
        shutil.copy(removed / name, work / name)
    return {
        "manifest": (removed / "manifest.json").read_text(),
        "moves": [[f".prep/version/{name}", name] for name in sorted(then - here)],
        "deletes": sorted(here - then),
        "clears": [],
    }


def forge(text: str) -> str:
    """A manifest of the same shards, with the right dataset_id, that is no version of this set."""
    raw = json.loads(text)
    lineage = ("ancestors", "same_places", "parent", "shards")
    content = {key: value for key, value in raw["content"].items() if key not in lineage}
    shards = [Shard(**entry) for entry in raw["content"]["shards"]]
    return make_manifest(content, shards, raw["audit"], raw["environment"])


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "not an object": lambda n: n.clear(),
    "moves is no list": lambda n: n.update(moves=5),
    "a move is no pair": lambda n: n.update(moves=[["a"]]),
    "a move is text": lambda n: n.update(moves=["ab"]),
    "deletes is text": lambda n: n.update(deletes="train-00000.bin"),
    "deletes holds a number": lambda n: n.update(deletes=[1]),
    "deletes another file": lambda n: n["deletes"].append("thesis.bin"),
    "deletes the manifest": lambda n: n["deletes"].append("manifest.json"),
    "deletes what it keeps": lambda n: n["deletes"].append(n["moves"][0][1]),
    "deletes nothing that it should and a kept shard": lambda n: n.update(
        deletes=[json.loads(n["manifest"])["content"]["shards"][0]["name"]]
    ),
    "clears the units": lambda n: n.update(clears=[".prep/units"]),
    "clears all": lambda n: n.update(clears=[".prep/append/.."]),
    "moves the tokenizer": lambda n: n["moves"].append([".prep/version/x", "tokenizer.json"]),
    "moves a unit's receipt": lambda n: n["moves"][0].__setitem__(0, ".prep/units/00000.json"),
    "a manifest that is no JSON": lambda n: n.update(manifest="{"),
    "a manifest of nothing": lambda n: n.update(manifest='{"dataset_id": "' + "0" * 64 + '"}'),
    "another set's manifest": lambda n: n.update(manifest=forge(n["manifest"])),
    "a changed manifest": lambda n: n.update(
        manifest=n["manifest"].replace('"num_tokens": ', '"num_tokens": 1', 1)
    ),
    "another sha256": lambda n: n.update(sha256="0" * 64),
    "a sha256 that is a number": lambda n: n.update(sha256=1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_journal_that_was_changed_changes_nothing(out: Path, removed: Path, change: str) -> None:
    (out / "thesis.bin").write_text("years of work")
    following = make_next(out, removed)
    CHANGES[change](following)
    (out / ".prep/version/next.json").write_text(json.dumps(following))
    before = {**set_bytes(out), "manifest": (out / "manifest.json").read_bytes()}
    line = say_one_line("shards", "remove", out, "--url", URL)
    assert ".prep/version/next.json: " in line
    assert "it was edited or damaged, and nothing was changed; remove" in line
    assert {**set_bytes(out), "manifest": (out / "manifest.json").read_bytes()} == before
    assert not (out / "versions").exists()
    # What the line says to do is right.
    shutil.rmtree(out / ".prep/version")
    assert velocity("shards", "remove", out, "--url", URL)[0] == 0
    (out / "thesis.bin").unlink()
    assert set_bytes(out) == set_bytes(removed)


@pytest.mark.parametrize("text", ["[]", "null", '"x"', "{", "\xff", '{"manifest": ' + "[" * 9])
def test_a_journal_that_is_no_journal_changes_nothing(out: Path, text: str) -> None:
    begin_version(out)
    (out / ".prep/version/next.json").write_bytes(text.encode("latin-1"))
    before = set_bytes(out)
    assert "next.json: " in say_one_line("shards", "remove", out, "--url", URL)
    assert set_bytes(out) == before


def test_a_journal_of_an_earlier_release_is_finished(out: Path, removed: Path) -> None:
    """It has no sha256 of its manifest."""
    (out / ".prep/version").mkdir()
    following = make_next(out, removed)
    (out / ".prep/version/next.json").write_text(json.dumps(following))
    code, _, said = velocity("shards", "remove", out, "--url", URL)
    assert (code, "finished a version whose command was stopped" in said) == (0, True)
    assert set_bytes(out) == set_bytes(removed)


@pytest.mark.parametrize("fault", ["damaged", "missing", "short", "in the way"])
def test_a_new_file_that_is_not_whole_changes_nothing(out: Path, removed: Path, fault: str) -> None:
    following = make_next(out, removed)
    (out / ".prep/version/next.json").write_text(json.dumps(following))
    [name] = [name for _, name in following["moves"] if name.endswith(".bin")]
    path = out / ".prep/version" / name
    content = path.read_bytes()
    if fault == "missing":
        path.unlink()
    elif fault == "in the way":
        (out / name).write_text("precious")
    else:
        path.write_bytes(content[:-2] if fault == "short" else bytes(2) + content[2:])
    before = set_bytes(out)
    line = say_one_line("shards", "remove", out, "--url", URL)
    state = {"missing": "is missing, so", "in the way": "is in the way"}.get(
        fault, "is damaged, so"
    )
    assert f"{name}: {state}" in line
    assert set_bytes(out) == before


RECEIPTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another unit's shard": lambda r: r["shards"][0].update(name="train-00003.bin"),
    "a file elsewhere": lambda r: r["shards"][0].update(name="../victim.bin"),
    "another kind of file": lambda r: r["shards"][0].update(name="thesis.bin"),
    "another unit": lambda r: r.update(unit=7),
    "shards is an object": lambda r: r.update(shards={}),
    "a shard is a list": lambda r: r.update(shards=[[]]),
    "no name": lambda r: r["shards"][0].pop("name"),
    "a size that is text": lambda r: r["shards"][0].update(num_tokens="9"),
    "budget": lambda r: r.update(budget=[]),
    "budget of text": lambda r: r.update(budget={"documents": "many", "tokens": None}),
    "truncated": lambda r: r.update(truncated="no"),
    "audit": lambda r: r.update(audit=5),
    "counts": lambda r: r["audit"].update(dropped={"x": "y"}),
    "rows": lambda r: r["audit"].update(rows_by_source={"a": None}),
    "hashes": lambda r: r.update(sidecar_sha256={}),
    "plan": lambda r: r.update(plan_id=None),
    "nothing": lambda r: r.clear(),
}


@pytest.mark.parametrize("end", ["json", "pending"])
@pytest.mark.parametrize("change", RECEIPTS)
def test_a_receipt_that_was_changed_changes_nothing(
    out: Path, source: Path, change: str, end: str
) -> None:
    (out / "manifest.json").unlink()
    for name in ("thesis.bin", "../victim.bin"):
        (out / name).write_text("years of work")
    path = out / ".prep/units/00001.json"
    receipt = json.loads(path.read_text())
    RECEIPTS[change](receipt)
    path.unlink()
    path = path.with_suffix(f".{end}")
    path.write_text(json.dumps(receipt))
    before, options = set_bytes(out), ["--unit-bytes", "3000", "--validation-fraction", "0.2"]
    line = say_one_line("prep", "--out", out, "--input", source, *options, "--workers", "1")
    assert f"{path}: " in line
    assert "remove it and run the same command again" in line
    assert (set_bytes(out), (out / "../victim.bin").exists()) == (before, True)
    line = say_one_line("prep", "--out", out, "--finish")
    assert f"{path}: " in line
    path.unlink()
    assert velocity("prep", "--out", out, "--input", source, *options, "--workers", "1")[0] == 0
    assert set_bytes(out) == before


PLANS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no content": lambda p: p.pop("content"),
    "content is a list": lambda p: p.update(content=[]),
    "policy is a list": lambda p: p["content"].update(policy=[]),
    "sources is text": lambda p: p["content"].update(sources="abc"),
    "a source of text": lambda p: p["content"].update(sources=["abcd"]),
    "a size of text": lambda p: p["content"]["sources"][0].__setitem__(1, "9"),
    "hub is a list": lambda p: p["content"].update(hub=[1]),
    "units is a number": lambda p: p["content"].update(units=1),
    "another id": lambda p: p.update(plan_id="0" * 64),
    "id is a list": lambda p: p.update(plan_id=[]),
}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("change", PLANS)
def test_a_plan_that_was_changed_is_one_line(
    out: Path, source: Path, change: str, finished: bool
) -> None:
    from shards.disk.json_files import hash_canonical

    path = out / ".prep/plan.json"
    plan = json.loads(path.read_text())
    PLANS[change](plan)
    if "id" not in change and "content" in plan:
        plan["plan_id"] = hash_canonical(plan["content"])
    path.write_text(json.dumps(plan))
    if not finished:
        (out / "manifest.json").unlink()
    before, options = set_bytes(out), ["--unit-bytes", "3000", "--validation-fraction", "0.2"]
    for command in (["--input", source, *options, "--workers", "1"], ["--finish"]):
        line = say_one_line("prep", "--out", out, *command)
        assert "plan.json: is damaged, or from another version of velocity" in line
    assert set_bytes(out) == before


NOTES = [
    '{"files": []}',
    '{"files": {"thesis.bin": "00"}}',
    '{"files": {"../victim.bin": "00"}}',
    '{"files": {"train-00000.bin": 1}}',
]


@pytest.mark.parametrize("note", [*NOTES, '{"files": {"manifest.json": "00"}}', "[]", "{", "7"])
def test_a_note_of_a_pull_that_was_changed_changes_nothing(
    out: Path, tmp_path: Path, note: str
) -> None:
    node = Path(shutil.copytree(out, tmp_path / "node"))
    (node / ".pull").mkdir()
    (node / ".pull/names.json").write_text(note)
    (tmp_path / "victim.bin").write_text("years of work")
    before = set_bytes(node)
    assert "names.json: " in say_one_line("shards", "pull", out, node)
    assert (set_bytes(node), (tmp_path / "victim.bin").exists()) == (before, True)


LEFT = ("train-00099.bin", "train-00099.docs.parquet")


@pytest.mark.parametrize(
    "note", [{"names": [*LEFT, "thesis.bin"]}, {"files": dict.fromkeys(LEFT, "0" * 64)}]
)
def test_a_pull_deletes_only_what_it_can_prove_it_put_there(
    out: Path, tmp_path: Path, note: dict[str, Any]
) -> None:
    node = tmp_path / "node"
    (node / ".pull").mkdir(parents=True)
    (node / ".pull/names.json").write_text(json.dumps(note))
    for name in (*LEFT, "thesis.bin"):
        (node / name).write_text("years of work")
    assert velocity("shards", "pull", out, node)[0] == 0
    assert {*LEFT, "thesis.bin"} <= set_bytes(node).keys()


@pytest.mark.parametrize("note", [*NOTES, "[]", "{", "7"])
def test_a_note_of_an_import_that_was_changed_changes_nothing(tmp_path: Path, note: str) -> None:
    tokens, out = tmp_path / "n.npy.bin", tmp_path / "shards"
    np.array([464, 3290, 50256], np.uint16).tofile(tokens)
    (out / ".prep").mkdir(parents=True)
    (out / ".prep/import.json").write_text(note)
    for name in ("train-00000.bin", "../victim.bin"):
        (out / name).write_text("years of work")
    line = say_one_line("shards", "import", "--out", out, tokens)
    assert "import.json: " in line
    (out / ".prep/import.json").write_text('{"names": ["train-00000.bin", "../victim.bin"]}')
    line = say_one_line("shards", "import", "--out", out, tokens)
    assert "train-00000.bin: already exists; nothing is overwritten" in line
    for name in ("train-00000.bin", "../victim.bin"):
        assert (out / name).read_text() == "years of work"


@pytest.mark.parametrize("fault", ["names", "plan", "types", "bytes", "stem"])
def test_a_rewritten_unit_that_was_changed_changes_nothing(
    out: Path, source: Path, fault: str
) -> None:
    (out / "manifest.json").unlink()
    receipt = json.loads((out / ".prep/units/00001.json").read_text())
    folder = out / ".prep/dedup"
    (folder / "00001").mkdir(parents=True)
    if fault == "names":
        receipt["shards"][0]["name"] = "train-00001-009.bin"
    elif fault == "plan":
        receipt["plan_id"] = "0" * 64
    elif fault == "types":
        receipt["shards"] = {"a": 1}
    else:
        (folder / "00001/train-00001.bin").write_bytes(b"other tokens")
    name = "x.json" if fault == "stem" else "00001.json"
    (folder / name).write_text(json.dumps(receipt))
    before, options = set_bytes(out), ["--unit-bytes", "3000", "--validation-fraction", "0.2"]
    line = say_one_line("prep", "--out", out, "--input", source, *options, "--workers", "1")
    assert f".prep/dedup/{name}: " in line
    assert set_bytes(out) == before


def test_the_note_of_an_upload_is_checked(out: Path, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    (bucket / "thesis.bin").write_text("years of work")
    owner = read_manifest(out).dataset_id
    for note in (
        {"owner": owner, "replaced": ["thesis.bin"]},
        {"owner": owner, "replaced": ["../thesis.bin"]},
        {"owner": owner, "replaced": {"train-00000.bin": 1}},
        {"owner": 7, "replaced": []},
        [],
    ):
        (bucket / UPLOAD).write_text(json.dumps(note))
        assert str(bucket) in say_one_line("shards", "push", out, bucket), note
        assert (bucket / "thesis.bin").exists()
        assert not (bucket / "manifest.json").exists()
    assert [fault for _, fault in verify_shards(out) if fault] == []


def test_more_sources_over_a_strange_plan(out: Path, tmp_path: Path) -> None:
    """An append that was begun has a plan of its own."""
    more = write_jsonl(tmp_path / "more.jsonl", ["one more", "two more"])
    options = ["--append", "--input", more, "--validation-fraction", "0.2", "--workers", "1"]
    folder = out / ".prep/append/.prep"
    (folder / "units").mkdir(parents=True)
    (folder / "units/00000.pending").write_text("{}")
    (folder / "plan.json").write_text("[]")
    before = set_bytes(out)
    assert "plan.json: " in say_one_line("prep", "--out", out, *options)
    assert set_bytes(out) == before
