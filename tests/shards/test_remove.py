"""Takedown: what was named is gone from every file, the rest is as it was, and runs know of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli import app
from prep.units.receipts import Audit
from shards.documents import Sidecars
from shards.edit.remove import Wanted, collect_wanted, find_wanted, remove_documents
from shards.edit.versions import begin_version, finish_version
from shards.exchange.pull import pull_shards
from shards.exchange.push import push_shards
from shards.format import read_manifest
from shards.inspect.verify import verify_shards
from shards.reader import open_shards
from tests.runs import make_config, run_small
from tests.servers.killed import hash_files, kill_often
from tests.texts import make_texts, prepare_quietly, read_texts, write_parquet
from train.tracing.describe import describe_documents
from train.tracing.runs import trace_run, trace_settings
from train.tracing.takedown import Takedown, take_down

SECRET = "the secret of Mrs Miller's garden 北京"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remove")
    for number in range(4):
        texts: list[str | None] = [*make_texts(120, seed=number)]
        texts[50] = f"{SECRET} {number}"
        texts[70 + number] = "a copy of one text"
        write_parquet(folder / f"{number}.parquet", texts)
    policy = {"validation_fraction": "0.2", "unit_bytes": 100, "shard_tokens": 3000}
    prepare_quietly(folder / "shards", folder, **policy)
    return folder / "shards"


@pytest.fixture
def shards_copy(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "shards"))


def check_set(folder: Path) -> None:
    """Whole by verify, conserved by its audit, and no file in it that it does not name."""
    assert [entry for entry in verify_shards(folder) if entry[1] is not None] == []
    manifest = read_manifest(folder)
    audit = Audit(**manifest.audit)
    assert audit.documents_read == audit.train + audit.validation + sum(audit.dropped.values())
    named = {name for shard in manifest.shards for name in (shard.name, shard.sidecar)}
    here = {path.name for path in folder.iterdir() if path.is_file()}
    assert here == named | {"manifest.json", "tokenizer.json"}
    assert not (folder / ".prep" / "version").exists()


def remove(folder: Path, *urls: str, keeps_places: bool = True, **options: object) -> list[str]:
    wanted = Wanted(frozenset(urls))
    takedown = Takedown(folder, wanted, keeps_places, **options)  # type: ignore[arg-type]
    return list(take_down(takedown, say=lambda line: None))


URLS = [f"https://example.com/{number}/50" for number in range(4)]


@pytest.mark.parametrize("keeps_places", [True, False])
def test_what_is_named_is_gone_and_nothing_else(shards_copy: Path, keeps_places: bool) -> None:
    before, old = read_texts(shards_copy), read_manifest(shards_copy)
    gone = {key: text for key, text in before.items() if text.startswith(SECRET)}
    assert len(gone) == 4
    remove(shards_copy, *URLS, keeps_places=keeps_places)
    check_set(shards_copy)

    after, new = read_texts(shards_copy), read_manifest(shards_copy)
    kept = {key: text for key, text in before.items() if key not in gone}
    assert after == (kept | dict.fromkeys(gone, "") if keeps_places else kept)
    audit, old_audit = Audit(**new.audit), Audit(**old.audit)
    assert audit.dropped == {"null": 0, "empty": 0, "removed": 4}
    assert audit.text_bytes == sum(len(text.encode()) for text in kept.values())
    assert old_audit.text_bytes - audit.text_bytes == sum(len(t.encode()) for t in gone.values())
    num_tokens = new.content["parent"].pop("tokens")
    assert new.content["parent"] == {
        "dataset_id": old.dataset_id,
        "change": "remove",
        "mode": "keep-places" if keeps_places else "cut",
        "documents": 4,
    }
    difference = sum(old.num_tokens(s) - new.num_tokens(s) for s in ("train", "validation"))
    assert difference == (0 if keeps_places else num_tokens)
    # Shards that hold none of them are the same files.
    assert {s for s in new.shards if ".r1" not in s.name} < set(old.shards)
    assert sum(".r1" in shard.name for shard in new.shards) == 4


def test_no_byte_of_it_stays_on_the_disk(shards_copy: Path) -> None:
    """Neither its tokens nor its URL nor its hash, in any file under any name."""
    shards = open_shards(shards_copy)
    found = find_wanted(shards, Wanted(frozenset(URLS)))
    needles = []
    for entry in found:
        start, stop = entry.document.start, entry.document.stop
        tokens = shards.stream(entry.shard.split).read(start, stop - start)
        needles += [tokens.tobytes(), bytes.fromhex(entry.document.doc_hash)]
    remove(shards_copy, *URLS)
    for path in shards_copy.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(needle in content for needle in needles), path
    for shard in read_manifest(shards_copy).shards:
        assert not set(read_urls(shards_copy / shard.sidecar)) & set(URLS)


def read_urls(sidecar: Path) -> list[str | None]:
    import pyarrow.parquet as pq

    return list(pq.read_table(sidecar, columns=["url"])["url"].to_pylist())


def test_kept_places_change_no_other_token(shards_copy: Path) -> None:
    shards = open_shards(shards_copy)
    before = shards.stream("train").read(0, shards.manifest.num_tokens("train"))
    found = find_wanted(shards, Wanted(frozenset(URLS)))
    is_removed = np.zeros(len(before), np.bool_)
    for entry in found:
        if entry.shard.split == "train":
            is_removed[entry.document.start : entry.document.stop] = True
    remove_documents(shards, found, keeps_places=True)
    after = open_shards(shards_copy).stream("train").read(0, len(before))
    assert (after == np.where(is_removed, 50256, before)).all()
    assert 20 < is_removed.sum() < 100


def test_a_hash_means_every_copy(shards_copy: Path, tmp_path: Path) -> None:
    texts = read_texts(shards_copy)
    copies = [key for key, text in texts.items() if text == "a copy of one text"]
    assert len(copies) == 4
    shards = open_shards(shards_copy)
    [one, *_] = [
        document
        for document in Sidecars(shards, copies[0][0]).between(
            0, shards.manifest.num_tokens(copies[0][0])
        )
        if (document.source_file, document.source_row) == copies[0][1:]
    ]
    (tmp_path / "hashes.txt").write_text(f"\n{one.doc_hash.upper()}\n\n{'1' * 32}\n")
    wanted = collect_wanted((), None, (), tmp_path / "hashes.txt")
    report = list(take_down(Takedown(shards_copy, wanted, False), lambda line: None))
    assert report[0].startswith("found 1 of 2: 4 documents, 24 tokens")
    assert report[1] == "not found: " + "1" * 32
    assert "a copy of one text" not in read_texts(shards_copy).values()
    check_set(shards_copy)


def test_versions_follow_each_other(shards_copy: Path) -> None:
    ids = [read_manifest(shards_copy).dataset_id]
    same_places = []
    for url, keeps_places in zip(URLS, (True, True, False, True), strict=True):
        remove(shards_copy, url, keeps_places=keeps_places)
        manifest = read_manifest(shards_copy)
        assert manifest.content["parent"]["dataset_id"] == ids[-1]
        ids.append(manifest.dataset_id)
        check_set(shards_copy)
        same_places.append(manifest.same_places)
    assert same_places == [ids[:1], ids[:2], [], [ids[3]]]
    kept = {path.stem for path in (shards_copy / "versions").iterdir()}
    assert kept == {dataset_id[:12] for dataset_id in ids}
    first = json.loads((shards_copy / "versions" / f"{ids[0][:12]}.json").read_text())
    assert first["dataset_id"] == ids[0]
    assert Audit(**manifest.audit).dropped["removed"] == 4


def test_a_second_time_it_finds_nothing_and_changes_nothing(shards_copy: Path) -> None:
    remove(shards_copy, *URLS)
    before = {path: path.stat().st_mtime_ns for path in shards_copy.glob("[!.]*.*")}
    assert remove(shards_copy, *URLS)[0].startswith("found 0 of 4: 0 documents")
    assert remove(shards_copy, "https://example.com/0/3", is_dry=True)[0].startswith("found 1")
    assert {path: path.stat().st_mtime_ns for path in shards_copy.glob("[!.]*.*")} == before


@pytest.mark.parametrize("mode", ["--keep-places", "--cut"])
def test_killed_at_any_moment_it_is_the_old_set_or_the_new_one(
    pristine: Path, tmp_path: Path, mode: str
) -> None:
    """SIGKILL between calls that change the disk; then the same command finishes."""
    (tmp_path / "urls.txt").write_text("\n".join(URLS))
    straight = Path(shutil.copytree(pristine, tmp_path / "straight"))
    remove(straight, *URLS, keeps_places=mode == "--keep-places")
    ids = {read_manifest(pristine).dataset_id, read_manifest(straight).dataset_id}
    folder = tmp_path / "shards"
    command = ["shards", "remove", str(folder), "--url-file", str(tmp_path / "urls.txt"), mode]
    tries = kill_often(folder, pristine, command, num_kills=10)
    expected = hash_files(straight)
    seen = set()
    for one in tries:
        assert one["files"] == expected, one["moment"]
        assert set(one["found"]) <= ids
        seen |= set(one["found"])
    assert seen == ids
    check_set(folder)
    assert {path.stem for path in (folder / "versions").iterdir()} == {name[:12] for name in ids}


def test_a_run_goes_on_where_places_are_kept(shards_copy: Path, tmp_path: Path) -> None:
    """The steps that saw it are told, the run goes on in the same order, and trace stays right."""
    run_small(shards_copy, tmp_path, training__num_training_steps=20)
    shards = open_shards(shards_copy)
    tracer = trace_run(shards, tmp_path / "checkpoints")
    seen = list(tracer.documents_of_step(7))
    document = seen[0][2][-1]
    assert document.url
    report = remove(shards_copy, document.url, "https://x", run=tmp_path / "checkpoints")
    steps = ", ".join(map(str, tracer.steps_of_document(document)[:20]))
    assert f"row {document.source_row}: steps {steps}" in report[2]
    assert report[3].startswith("1 of 1 documents were seen, in ")

    run_small(shards_copy, tmp_path, training__num_training_steps=24)
    new = trace_run(open_shards(shards_copy), tmp_path / "checkpoints")
    assert new.num_steps == 24
    assert [start for _, start, _ in new.documents_of_step(7)] == [start for _, start, _ in seen]
    assert f"tokens of removed {document.source_file}" in "\n".join(describe_documents([new], 7))
    assert document.doc_hash not in "\n".join(describe_documents([new], 7))

    remove(shards_copy, URLS[2], keeps_places=False)
    with pytest.raises(ValueError, match=r"was trained with dataset_id=.* keep it as it was, or"):
        run_small(shards_copy, tmp_path, training__num_training_steps=28)
    with pytest.raises(ValueError, match="was trained on dataset_id"):
        remove(shards_copy, URLS[3], run=tmp_path / "checkpoints")


def test_a_run_on_a_node_that_has_one_split_goes_on_over_a_later_version(
    shards_copy: Path, tmp_path: Path
) -> None:
    bucket, node = tmp_path / "bucket", tmp_path / "node"

    def bring() -> str:
        push_shards(shards_copy, str(bucket), lambda line: None)
        pull_shards(str(bucket), node, lambda line: None, split="train")
        return open_shards(node).manifest.dataset_id

    first = bring()
    run_small(node, tmp_path, training__num_training_steps=20)
    tracer = trace_run(open_shards(node), tmp_path / "checkpoints")
    seen = list(tracer.documents_of_step(7))
    assert seen[0][2][-1].url
    remove(shards_copy, seen[0][2][-1].url)
    assert bring() != first
    run_small(node, tmp_path, training__num_training_steps=24)
    new = trace_run(open_shards(node), tmp_path / "checkpoints")
    assert [start for _, start, _ in new.documents_of_step(7)] == [start for _, start, _ in seen]

    remove(shards_copy, URLS[2], keeps_places=False)
    bring()
    with pytest.raises(ValueError, match="was trained with dataset_id="):
        run_small(node, tmp_path, training__num_training_steps=28)


def test_every_step_that_is_reported_saw_it(shards_copy: Path, tmp_path: Path) -> None:
    """The backward report against the forward direction, for documents of every length."""
    from train.tracing.describe import describe_sightings

    shards = open_shards(shards_copy)
    tracer = trace_settings(shards, make_config(shards_copy, tmp_path), 1)
    found = find_wanted(shards, Wanted(frozenset(f"https://example.com/2/{n}" for n in range(40))))
    documents = [entry.document for entry in found if entry.shard.split == "train"]
    lines = list(describe_sightings(tracer, documents))
    seen: dict[tuple[str, int], list[int]] = {}
    for step in range(1, tracer.num_steps + 1):
        rows = {
            (document.source_file, document.source_row)
            for _, _, read in tracer.documents_of_step(step)
            for document in read
        }
        for row in rows:
            seen.setdefault(row, []).append(step)
    for document, line in zip(documents, lines, strict=False):
        steps = seen.get((document.source_file, document.source_row), [])
        expected = f"steps {', '.join(map(str, steps))}" if steps else "no step"
        assert line.endswith(f"{document.source_file} row {document.source_row}: {expected}")
    assert any("steps" in line for line in lines[:-1])


def test_many_urls_are_found_by_their_columns(shards_copy: Path) -> None:
    urls = frozenset(f"https://example.com/{n % 9}/{n}" for n in range(50_000))
    found = find_wanted(open_shards(shards_copy), Wanted(urls))
    assert len(found) == len({entry.document.url for entry in found})
    assert {e.document.url for e in found} == {
        f"https://example.com/{f}/{r}" for f in range(4) for r in range(f, 120, 9)
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "which documents"),
        ({"hashes": ["12"]}, "expected 32 hexadecimal digits"),
        ({"hashes": ["0" * 32]}, "stands for removed documents"),
    ],
)
def test_mistakes_are_one_line(arguments: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect_wanted(arguments.get("urls", []), None, arguments.get("hashes", []), None)


def test_the_command_takes_files_of_hashes_and_changes_nothing_on_a_dry_run(
    shards_copy: Path, tmp_path: Path
) -> None:
    before = read_manifest(shards_copy)
    [found] = find_wanted(open_shards(shards_copy), Wanted(frozenset(URLS[:1])))
    (tmp_path / "hashes.txt").write_text(f"{found.document.doc_hash}\n\n")
    command = ["shards", "remove", str(shards_copy), "--hash-file", str(tmp_path / "hashes.txt")]
    result = CliRunner().invoke(app, [*command, "--cut", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "found 1 of 1: 1 documents" in result.output
    assert read_manifest(shards_copy) == before
    result = CliRunner().invoke(app, [*command, "--cut"])
    assert result.exit_code == 0, result.output
    after = read_manifest(shards_copy)
    assert after.content["parent"]["mode"] == "cut"
    assert find_wanted(open_shards(shards_copy), Wanted(frozenset(URLS[:1]))) == []


def test_a_damaged_shard_or_a_file_in_the_way_stops_it(shards_copy: Path) -> None:
    before = read_manifest(shards_copy)
    shard = find_wanted(open_shards(shards_copy), Wanted(frozenset(URLS[:1])))[0].shard
    (shards_copy / f"{shard.name.removesuffix('.bin')}.r1.bin").write_bytes(b"precious")
    with pytest.raises(ValueError, match="is in the way of a new version"):
        remove(shards_copy, URLS[0])
    (shards_copy / f"{shard.name.removesuffix('.bin')}.r1.bin").unlink()
    content = bytearray((shards_copy / shard.name).read_bytes())
    content[10] ^= 1
    (shards_copy / shard.name).write_bytes(content)
    with pytest.raises(ValueError, match="is missing or damaged, and nothing was changed"):
        remove(shards_copy, URLS[0])
    assert read_manifest(shards_copy) == before


def test_a_journal_that_leads_out_of_the_folder_is_refused(shards_copy: Path) -> None:
    begin_version(shards_copy)
    for moves, deletes in (((), ("../precious",)), (((".prep/../../x", "a.bin"),), ())):
        path = shards_copy / ".prep/version/next.json"
        path.write_text(json.dumps({"manifest": "{}", "moves": moves, "deletes": deletes}))
        with pytest.raises(ValueError, match="names a file outside the set's folder"):
            finish_version(shards_copy)
        path.unlink()
