"""--dedup near: of near-equal documents the first stays, whoever did the work, killed or not."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from prep.append import append_sources
from prep.gather import finish_parts
from prep.policy import Policy
from prep.request import Request
from prep.run import prepare
from prep.run_part import prepare_part
from prep.units.receipts import Audit
from shards.disk.part import parse_part
from shards.edit.remove import Wanted, find_wanted, remove_documents
from shards.exchange.pull import pull_shards
from shards.exchange.push import push_shards
from shards.format import Manifest, read_manifest
from shards.inspect.verify import verify_shards
from shards.near.forest import Forest
from shards.reader import open_shards
from tests.commands import velocity
from tests.planted import measure_pairs, plant_copies
from tests.prep.test_dedup import keep_first, read_documents, stop
from tests.servers.killed import hash_files, kill_often
from tests.texts import prepare_quietly, prepare_until, set_bytes, write_jsonl, write_parquet

OPTIONS = {"validation_fraction": "0.3", "unit_bytes": 30_000, "shard_tokens": 9000}
NEAR = OPTIONS | {"dedup": "near"}
Files = dict[str, list[str | None]]
Place = tuple[str, int]


@pytest.fixture(scope="module")
def files() -> Files:
    """Planted copies in three files, among them equal texts and texts of few words or none."""
    texts = plant_copies(130, seed=9)
    texts[40:40] = ["...", "a b", "A b!", "...", texts[3], texts[200]]
    files: Files = {"0.parquet": [*texts[:90]], "1.jsonl": [*texts[90:170]]}
    return files | {"2.parquet": [None, *texts[170:], "", texts[0]]}


@pytest.fixture(scope="module")
def source(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("source"), files)


def write(folder: Path, files: Files) -> Path:
    folder.mkdir(exist_ok=True)
    for name, texts in files.items():
        (write_parquet if name.endswith(".parquet") else write_jsonl)(folder / name, texts)
    return folder


@pytest.fixture(scope="module")
def straight(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "shards"
    prepare_quietly(out, source, **NEAR)
    return out


def read_copies(out: Path, name: str = "copies-00000.parquet") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / name).to_pylist()
    return rows


def place(row: dict[str, Any]) -> Place:
    return row["source_file"], row["source_row"]


def check_whole(out: Path) -> Manifest:
    manifest = read_manifest(out)
    assert [entry for entry in verify_shards(out) if entry[1] is not None] == []
    named = {name for shard in manifest.shards for name in (shard.name, shard.sidecar)}
    assert set(set_bytes(out)) == named | {"tokenizer.json"} | manifest.audit["copies"].keys()
    assert not list((out / ".prep").glob("near/[0-9]*"))
    assert not (out / ".prep/dedup").exists()
    return manifest


def test_the_first_of_each_cluster_stays(straight: Path, files: Files) -> None:
    texts = {
        (name, row): text for name, found in files.items() for row, text in enumerate(found) if text
    }
    order = list(texts)
    kept = read_documents(straight)
    assert {key: texts[key] for key in kept} == kept
    rows = read_copies(straight)
    by_number = {row["number"]: row for row in rows}
    dropped = {place(row): row for row in rows if row["reason"]}
    assert sorted([*kept, *dropped]) == sorted(order)
    # Numbers are places in plan order, and each that was dropped names an earlier one that stayed.
    assert [row["number"] for row in rows] == [order.index(place(row)) for row in rows]
    for row in dropped.values():
        first = by_number[row["kept"]]
        assert first["number"] < row["number"]
        assert place(first) in kept
        assert first["reason"] is None
        assert first["kept"] == first["number"]
    exact = keep_first(files)
    assert {key for key, row in dropped.items() if row["reason"] == "duplicate"} == (
        set(order) - set(exact)
    )
    check_audit(check_whole(straight), rows, texts)


def check_audit(manifest: Manifest, rows: list[dict[str, Any]], texts: dict[Place, str]) -> None:
    audit = Audit(**manifest.audit)
    reasons = Counter(row["reason"] for row in rows if row["reason"])
    assert reasons["near-duplicate"] > 30
    assert audit.dropped == {"null": 1, "empty": 1, **reasons}
    sizes = Counter(Counter(row["kept"] for row in rows).values())
    assert audit.clusters == {str(size): count for size, count in sizes.items()}
    assert audit.documents_read == len(texts) + 2
    gone = {place(row) for row in rows if row["reason"]}
    stayed = [len(text.encode()) for key, text in texts.items() if key not in gone]
    assert audit.text_bytes == sum(stayed)
    policy = manifest.content["policy"]
    assert {key: policy[key] for key in policy if key.startswith("near")} == {
        "near_threshold": "0.8",
        "near_shingle": 5,
        "near_bands": 16,
        "near_rows": 6,
    }


def test_recall_and_precision_of_what_is_dropped(straight: Path, files: Files) -> None:
    """Against all pairs, counted plainly."""
    texts = {
        (name, row): text for name, found in files.items() for row, text in enumerate(found) if text
    }
    order = list(texts)
    near, loose = Forest(len(order)), Forest(len(order))
    for i, j, similarity in measure_pairs(list(texts.values())):
        for forest, threshold in ((near, 0.87), (loose, 0.7)):
            if similarity >= threshold:
                forest.join(np.array([i]), np.array([j]))
    numbers = np.arange(len(order))
    certain = {order[n] for n in np.flatnonzero(near.find_roots(numbers) != numbers)}
    possible = {order[n] for n in np.flatnonzero(loose.find_roots(numbers) != numbers)}
    gone = set(order) - read_documents(straight).keys()
    assert len(certain) > 60
    assert len(certain & gone) >= 0.99 * len(certain)
    assert gone <= possible | {("0.parquet", 43)}  # The second text without words.


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_no_byte(
    source: Path, straight: Path, tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "shards"
    manifest = prepare_quietly(out, source, workers=workers, **NEAR)
    assert manifest.dataset_id == read_manifest(straight).dataset_id
    assert manifest.audit == read_manifest(straight).audit
    assert set_bytes(out) == set_bytes(straight)


def test_parts_make_the_same_set(source: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"

    def run(number: int) -> None:
        policy = Policy(**NEAR)  # type: ignore[arg-type]
        task = parse_part(f"{number}/3")
        request = Request(out, policy=policy, inputs=(str(source),), task=task, workers=1)
        prepare_part(request, lambda line: None)

    for number in (2, 0, 1):
        run(number)
    damaged = out / ".prep/near/00001"
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    request = Request(out, task="finish", workers=2)
    with pytest.raises(ValueError, match=r"\.prep/near/00001: not the bytes that were written"):
        finish_parts(request, lambda line: None)
    run(1)
    finish_parts(request, lambda line: None)
    assert set_bytes(out) == set_bytes(straight)
    assert read_manifest(out).audit == check_whole(straight).audit


@pytest.mark.parametrize("at", ["prep.units.work.commit_signatures", "prep.copies.near.decide"])
def test_killed_at_any_moment_it_gives_the_same_bytes(
    source: Path, straight: Path, tmp_path: Path, at: str
) -> None:
    """In the units' work, and after it."""
    prepare_until(at, tmp_path / "pristine", source, **NEAR)
    command = ["prep", "--out", str(tmp_path / "shards"), "--input", str(source), "--workers", "1"]
    command += [f"--{key.replace('_', '-')}={value}" for key, value in NEAR.items()]
    expected = hash_files(straight)
    for one in kill_often(tmp_path / "shards", tmp_path / "pristine", command, num_kills=5):
        assert one["files"] == expected, one["moment"]
    assert check_whole(tmp_path / "shards").audit == read_manifest(straight).audit


def test_what_is_left_of_a_chain_is_not_decided_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three texts, the second near both others, which are not near each other; the cut of the
    second is done when the command stops, and its unit is lost later."""
    words = [f"w{n}" for n in range(200)]
    other = [f"v{n}" for n in range(17)]
    chain = [words, other + words[17:], other + words[17:183] + other[::-1]]
    for number, text in enumerate(chain):
        write_jsonl(tmp_path / f"{number}.jsonl", [" ".join(text), f"and {number} alone"])
    sources = [tmp_path / f"{number}.jsonl" for number in range(3)]
    options = NEAR | {"unit_bytes": 1, "near_threshold": "0.7"}
    out = tmp_path / "shards"
    with monkeypatch.context() as patch:
        real = __import__("prep.copies.cut").copies.cut.place_unit

        def place_one(*arguments: object) -> None:
            real(*arguments)
            stop()

        patch.setattr("prep.copies.cut.place_unit", place_one)
        with pytest.raises(RuntimeError, match="stopped here"):
            prepare_quietly(out, *sources, **options)
    prepare_quietly(out, *sources, **options)
    whole = set_bytes(out)
    assert sorted(read_documents(out)) == [("0.jsonl", 0), *((f"{n}.jsonl", 1) for n in range(3))]
    assert read_manifest(out).audit["clusters"] == {"3": 1}
    for lost in ("manifest.json", *(path.name for path in out.glob("*-00002.bin"))):
        (out / lost).unlink()
    prepare_quietly(out, *sources, **options)
    assert set_bytes(out) == whole
    for lost in ("manifest.json", "copies-00000.parquet"):
        (out / lost).unlink()
    with pytest.raises(ValueError, match=r"lost or damaged, and 2 units were cut by it; discarded"):
        prepare_quietly(out, *sources, **options)
    prepare_quietly(out, *sources, **options)
    assert set_bytes(out) == whole


def test_limits_count_copies_too(source: Path, tmp_path: Path) -> None:
    made = []
    for workers in (1, 3):
        out = tmp_path / str(workers)
        made.append(prepare_quietly(out, source, workers=workers, max_documents=150, **NEAR))
        audit = Audit(**made[-1].audit)
        copies = audit.dropped["duplicate"] + audit.dropped["near-duplicate"]
        assert audit.train + audit.validation + copies == 150
    assert made[0].dataset_id == made[1].dataset_id
    assert set_bytes(tmp_path / "1") == set_bytes(tmp_path / "3")


def test_lost_or_damaged_signatures_are_one_line_and_made_again(
    source: Path, straight: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    prepare_until("prep.copies.near.decide", out, source, **NEAR)
    path = out / ".prep/near/00000"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"near/00000: is missing or damaged \(sha256\); remove"):
        prepare_quietly(out, source, **NEAR)
    path.unlink()
    prepare_quietly(out, source, **NEAR)
    assert set_bytes(out) == set_bytes(straight)


def append(out: Path, *inputs: Path, workers: int = 1) -> Manifest:
    policy = Policy(**NEAR)  # type: ignore[arg-type]
    paths = tuple(map(str, inputs))
    request = Request(out, policy=policy, inputs=paths, workers=workers, task="append")
    return append_sources(request, lambda line: None)


def test_appended_documents_near_those_of_the_set_are_dropped(
    source: Path, files: Files, straight: Path, tmp_path: Path
) -> None:
    """What is kept is what one run over all sources keeps, as far as clusters have one document
    each that stayed; removed documents have no text any more."""
    sources = write(tmp_path / "old", {key: files[key] for key in ("0.parquet", "1.jsonl")})
    more = write(tmp_path / "more", {"2.parquet": files["2.parquet"]})
    for workers in (1, 2):
        out = tmp_path / f"shards{workers}"
        prepare_quietly(out, sources, **NEAR)
        append(out, more, workers=workers)
    assert set_bytes(tmp_path / "shards1") == set_bytes(tmp_path / "shards2")
    out = tmp_path / "shards1"
    manifest = check_whole(out)
    assert len(manifest.audit["copies"]) == 2
    found, whole = read_documents(out), read_documents(straight)
    assert found.keys() >= whole.keys()
    assert len(found) - len(whole) <= 2
    name = max(manifest.audit["copies"])
    rows = read_copies(out, name)
    by_number = {row["number"]: row for row in rows}
    assert {row["source_file"] for row in rows if row["reason"]} == {"2.parquet"}
    assert {by_number[row["kept"]]["source_file"] for row in rows} > {"2.parquet"}


def test_lists_of_copies_travel_with_the_whole_set_and_go_when_documents_are_removed(
    straight: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(straight, tmp_path / "shards"))
    quiet: Any = lambda line: None  # noqa: E731
    push_shards(out, str(tmp_path / "url"), quiet)
    pull_shards(str(tmp_path / "url"), tmp_path / "pulled", quiet)
    assert set_bytes(tmp_path / "pulled") == set_bytes(out)
    pull_shards(str(tmp_path / "url"), tmp_path / "part", quiet, split="train")
    assert "copies" not in read_manifest(tmp_path / "part").audit
    assert [fault for _, fault in verify_shards(tmp_path / "part") if fault] == []
    damaged = tmp_path / "pulled/copies-00000.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert [(name, fault) for name, fault in verify_shards(tmp_path / "pulled") if fault] == [
        ("copies-00000.parquet", "is missing, or its sha256 is not the manifest's")
    ]
    shards = open_shards(out)
    url = next(row["url"] for row in read_copies(out) if row["url"] and not row["reason"])
    remove_documents(shards, find_wanted(shards, Wanted(frozenset([url]))), keeps_places=False)
    assert "copies" not in read_manifest(out).audit
    assert not (out / "copies-00000.parquet").exists()
    push_shards(out, str(tmp_path / "url"), quiet)
    assert not (tmp_path / "url/copies-00000.parquet").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--dedup", "near", "--near-threshold", "1.5"],
            "--near-threshold is 1.5; expected a number above 0 and up to 1, such as 0.8",
        ),
        (
            ["--dedup", "near", "--near-bands", "0"],
            "--near-bands is 0; expected a number from 1 to 256",
        ),
        (["--near-rows", "7"], "--near-rows is for --dedup near; give both or neither"),
        (
            ["--dedup", "exact", "--near-threshold", "0.7"],
            "--near-threshold is for --dedup near; give both or neither",
        ),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, options: list[str], expected: str) -> None:
    code, _, errors = velocity("prep", "--out", tmp_path / "x", *options)
    assert (code, errors) == (1, f"velocity: {expected}\n")


def test_a_damaged_decision_is_one_line(source: Path, straight: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(straight, tmp_path / "shards"))
    (out / "manifest.json").unlink()
    path = out / ".prep/near/decided.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"documents": "many"}))
    with pytest.raises(ValueError, match="it was edited or damaged, so remove it"):
        prepare_quietly(out, source, **NEAR)


def test_what_it_needs_is_said_before_the_start(source: Path, tmp_path: Path) -> None:
    said: list[str] = []
    for policy in (Policy(**NEAR), Policy(**OPTIONS)):  # type: ignore[arg-type]
        out = tmp_path / str(policy.dedup)
        prepare(Request(out, policy=policy, inputs=(str(source),), workers=1), said.append)
    found = [line for line in said if "of it for near-duplicates" in line]
    assert len(found) == 1
    assert re.search(r"\([\d.]+ [KM]B of it .* about [\d.]+ [KM]B of memory at the end\)", found[0])
