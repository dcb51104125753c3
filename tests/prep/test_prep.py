"""Prep from local files: every token once, the same bytes whoever does the work, nothing lost."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prep.planning.plan import choose_unit_bytes
from prep.policy import Policy
from prep.request import ENCODERS
from prep.run import Request, prepare
from prep.sources.local import Source, find_sources
from prep.tokenizer import encoder
from prep.units.receipts import Audit
from shards.documents import Sidecars
from shards.format import Manifest, read_manifest
from shards.reader import open_shards
from shards.tokenizer import load_tokenizer
from tests.commands import velocity
from tests.servers.forked import Forked, run_forked
from tests.servers.held import hold_after
from tests.texts import make_texts, prepare_quietly, set_bytes, write_jsonl, write_parquet


def prep_command(out: Path, *arguments: object) -> list[str]:
    return ["velocity", "prep", "--out", str(out), *map(str, arguments)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files in a folder: parquet, JSON lines, and text."""
    folder = tmp_path_factory.mktemp("source")
    texts: list[str | None] = [*make_texts(900)]
    texts[5:5] = ["", None, "", texts[100]]
    write_parquet(folder / "a.parquet", texts)
    write_jsonl(folder / "b.jsonl", list(make_texts(700, seed=1)))
    (folder / "c.txt").write_text("One document.\n\nIn two paragraphs.\n")
    return folder


@pytest.fixture(scope="module")
def reference(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "shards"
    prepare_quietly(out, source, unit_bytes=8000, validation_fraction="0.2", shard_tokens=5000)
    return out


def test_every_document_is_in_the_shards_exactly_once(source: Path, reference: Path) -> None:
    shards = open_shards(reference)
    tokenizer = load_tokenizer(reference / "tokenizer.json")
    found: dict[tuple[str, int], str] = {}
    num_tokens = 0
    for split in ("train", "validation"):
        stream = shards.stream(split)
        for document in Sidecars(shards, split).between(0, stream.num_tokens):
            ids = stream.read(document.start, document.num_tokens).tolist()
            assert ids[-1] == 50256
            assert 50256 not in ids[:-1]
            key = (document.source_file, document.source_row)
            assert key not in found
            found[key] = tokenizer.decode(ids[:-1], skip_special_tokens=False)
            num_tokens += len(ids)
    assert num_tokens == sum(shard.num_tokens for shard in shards.manifest.shards)

    a: list[str | None] = [*make_texts(900)]
    a[5:5] = ["", None, "", a[100]]
    expected = {("a.parquet", row): text for row, text in enumerate(a) if text}
    expected |= {("b.jsonl", row): text for row, text in enumerate(make_texts(700, seed=1))}
    expected["c.txt", 0] = "One document.\n\nIn two paragraphs.\n"
    assert found == expected


def test_the_audit_accounts_for_every_document(reference: Path) -> None:
    audit = Audit(**read_manifest(reference).audit)
    assert audit.documents_read == 904 + 700 + 1
    assert audit.dropped == {"empty": 2, "null": 1}
    assert audit.train + audit.validation + 3 == audit.documents_read
    assert audit.rows_by_source == {"a.parquet": 904, "b.jsonl": 700, "c.txt": 1}
    assert 0.15 < audit.validation / audit.documents_read < 0.25


def test_exact_copies_fall_on_one_side_of_the_split(reference: Path) -> None:
    shards = open_shards(reference)
    hashes = []
    for split in ("train", "validation"):
        documents = Sidecars(shards, split).between(0, shards.stream(split).num_tokens)
        hashes.append({document.doc_hash for document in documents})
    assert not hashes[0] & hashes[1]


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_no_byte(
    source: Path, reference: Path, tmp_path: Path, workers: int
) -> None:
    manifest = prepare_quietly(
        tmp_path / "shards",
        source,
        unit_bytes=8000,
        validation_fraction="0.2",
        shard_tokens=5000,
        workers=workers,
    )
    assert manifest.dataset_id == read_manifest(reference).dataset_id
    assert set_bytes(tmp_path / "shards") == set_bytes(reference)


def test_where_the_files_lie_changes_no_byte(source: Path, reference: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in source.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    manifest = prepare_quietly(
        tmp_path / "shards", moved, unit_bytes=8000, validation_fraction="0.2", shard_tokens=5000
    )
    assert manifest.dataset_id == read_manifest(reference).dataset_id


def test_killed_again_and_again_it_gives_the_same_bytes(
    source: Path, reference: Path, tmp_path: Path
) -> None:
    """SIGKILL of the command and its workers at random moments, then the same command."""
    out = tmp_path / "shards"
    command = prep_command(out, "--input", source, "--unit-bytes", 8000)
    command += ["--validation-fraction", "0.2", "--shard-tokens", "5000"]
    generator = random.Random(2026)
    kills = 0
    units_done = []
    while kills < 5:
        workers = generator.choice([1, 1, 2])
        process = Forked([*command, "--workers", workers])
        wait_for_units(process, out, count_units(out) + generator.randint(0, 2))
        time.sleep(generator.uniform(0, 0.1))
        if process.poll() is not None:
            assert (out / "manifest.json").exists()
            # Done before it was killed often enough: take the last steps back and kill again.
            (out / "manifest.json").unlink()
            for receipt in generator.sample(sorted((out / ".prep/units").iterdir()), 8):
                receipt.unlink()
            continue
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        units_done.append(count_units(out))
    assert run_forked([*command, "--workers", "2"]).returncode == 0
    assert max(units_done) > 0
    assert read_manifest(out).dataset_id == read_manifest(reference).dataset_id
    assert set_bytes(out) == set_bytes(reference)
    assert list((out / ".prep/tmp").iterdir()) == []


def count_units(out: Path) -> int:
    return len(list((out / ".prep/units").glob("*.json")))


def wait_for_units(process: Forked, out: Path, count: int) -> None:
    """Return when the command has begun a unit and so many are done, or when it has ended."""
    while process.poll() is None:
        begun = (out / ".prep/tmp").is_dir() and any((out / ".prep/tmp").iterdir())
        if begun and count_units(out) >= count:
            return
        time.sleep(0.002)


def test_a_worker_that_is_killed_is_replaced(source: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    command = prep_command(out, "--input", source, "--unit-bytes", 8000, "--workers", 2)
    command += ["--validation-fraction", "0.2", "--shard-tokens", "5000"]
    process = Forked(command)
    worker = find_worker(process.pid)
    os.kill(worker, signal.SIGKILL)
    assert process.wait() == 0
    assert set_bytes(out) == set_bytes(reference)


def find_worker(parent: int) -> int:
    """A worker process of a prep command, as soon as it has one."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return child
        time.sleep(0.01)
    raise AssertionError("no worker was started")


def first_documents(source: Path, tmp_path: Path, **limits: int) -> tuple[Manifest, bytes]:
    """What a limit gives, with one worker and with three; they must be equal."""
    results = []
    for workers in (1, 3):
        out = tmp_path / f"shards-{workers}"
        manifest = prepare_quietly(out, source, unit_bytes=8000, workers=workers, **limits)
        named = {name for shard in manifest.shards for name in (shard.name, shard.sidecar)}
        files = set_bytes(out)
        assert set(files) == named | {"tokenizer.json"}
        results.append((manifest, files))
    assert results[0][0].dataset_id == results[1][0].dataset_id
    assert results[0][1] == results[1][1]
    stream = open_shards(tmp_path / "shards-1").stream("train")
    return results[0][0], stream.read(0, stream.num_tokens).tobytes()


def test_max_documents_takes_the_first_in_plan_order(source: Path, tmp_path: Path) -> None:
    manifest, tokens = first_documents(source, tmp_path, max_documents=333, validation_fraction="0")
    audit = Audit(**manifest.audit)
    assert audit.train + audit.validation == 333
    assert audit.documents_read == 333 + 3  # Three were dropped on the way.
    everything = prepare_quietly(tmp_path / "all", source, validation_fraction="0")
    stream = open_shards(tmp_path / "all").stream("train")
    assert everything.num_tokens("train") > len(tokens) // 2
    assert stream.read(0, len(tokens) // 2).tobytes() == tokens


def test_max_tokens_stops_before_the_document_that_is_too_much(
    source: Path, tmp_path: Path
) -> None:
    manifest, tokens = first_documents(source, tmp_path, max_tokens=40_000, validation_fraction="0")
    assert 39_000 < manifest.num_tokens("train") <= 40_000
    prepare_quietly(tmp_path / "all", source, validation_fraction="0")
    stream = open_shards(tmp_path / "all").stream("train")
    count = len(tokens) // 2
    assert stream.read(0, count).tobytes() == tokens
    following = Sidecars(open_shards(tmp_path / "all"), "train").between(count, count + 1)
    assert count + following[0].num_tokens > 40_000


def test_another_plan_over_an_unfinished_one_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    prepare_quietly(out, source, validation_fraction="0.2")
    (out / "manifest.json").unlink()
    before = set_bytes(out)
    with pytest.raises(
        ValueError, match=r"unfinished set .* validation_fraction was 0.2, is now 0"
    ):
        prepare_quietly(out, source, validation_fraction="0")
    (source / "new.txt").write_text("new")
    try:
        with pytest.raises(ValueError, match=r"new.txt is new"):
            prepare_quietly(out, source, validation_fraction="0.2")
    finally:
        (source / "new.txt").unlink()
    assert set_bytes(out) == before
    prepare_quietly(out, source, validation_fraction="0.2")


def test_options_can_be_mended_before_anything_was_done(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a document"}\n')
    with pytest.raises(ValueError, match="no key 'content'"):
        prepare_quietly(tmp_path / "shards", tmp_path / "a.jsonl")
    manifest = prepare_quietly(tmp_path / "shards", tmp_path / "a.jsonl", text_column="text")
    assert manifest.audit["documents_read"] == 1


def test_shards_inside_the_input_folder_are_no_source(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*make_texts(30)])
    first = prepare_quietly(tmp_path / "shards", tmp_path)
    assert prepare_quietly(tmp_path / "shards", tmp_path) == first
    assert prepare_quietly(tmp_path / "more", tmp_path).dataset_id == first.dataset_id


def test_the_same_command_over_a_finished_set_does_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    first = prepare_quietly(out, source)
    changed = {path: path.stat().st_mtime_ns for path in out.glob("[!.]*.*")}
    assert prepare_quietly(out, source) == first
    assert {path: path.stat().st_mtime_ns for path in out.glob("[!.]*.*")} == changed


def test_two_at_once_in_one_folder_are_refused(source: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / ".prep").mkdir()
    with (
        FileLock(tmp_path / ".prep" / "lock"),
        pytest.raises(ValueError, match="another velocity prep is running there"),
    ):
        prepare_quietly(tmp_path, source)


def test_foreign_shards_are_not_written_over(source: Path, tmp_path: Path) -> None:
    (tmp_path / "train-00000.bin").write_bytes(b"precious")
    with pytest.raises(ValueError, match="nothing is overwritten"):
        prepare_quietly(tmp_path, source)
    assert (tmp_path / "train-00000.bin").read_bytes() == b"precious"


def test_a_full_disk_is_one_line_and_loses_nothing(source: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the kernel refuses the write."""
    out = tmp_path / "shards"
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_200_000, 2_200_000)); "
        "from cli import main; main()"
    )
    big = write_jsonl(tmp_path / "big.jsonl", list(make_texts(20_000, seed=3, mean_words=150)))
    arguments = prep_command(
        out, "--input", source / "b.jsonl", "--input", big, "--unit-bytes", 90_000
    )
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            *arguments[1:],
            "--workers",
            "1",
            "--unit-bytes",
            "90000000",
        ],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    last = process.stderr.splitlines()[-1]
    assert last.startswith("velocity: ")
    assert "File too large" in last
    assert "run the same command again" in last
    assert list((out / ".prep/tmp").iterdir()) == []


def test_too_little_disk_is_refused_before_the_start(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prep.planning.forecast.TOKENS_PER_TEXT_BYTE", 1e12)
    with pytest.raises(ValueError, match=r"about .* of disk is needed in .*, and .* is free"):
        prepare_quietly(tmp_path, source)


def test_a_stop_keeps_what_is_committed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    command = prep_command(out, "--input", source, "--unit-bytes", 2000, "--workers", 1)
    process = Forked(command, setup=hold_after("prep.engines.local", "process_unit", 2))
    while not list((out / ".prep/units").glob("*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "the same command resumes from there" in errors
    assert run_forked(command).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "nowhere"], "nowhere: no such file or folder, and as a pattern it matches"),
        (["--input", "a.pdf"], "a.pdf: expected a file ending in .parquet, .arrow"),
        (["--input", "empty"], "empty: no file ending in"),
        (
            ["--input", "list*.json"],
            "list*.json: no file of documents there (1 file left out: .json without the key "
            "'content' 1); name the right key or column with --text-column",
        ),
        (["--input", "b.jsonl", "--data-files", "en/*"], "--data-files is for --dataset, not --in"),
        (["--input", "b.jsonl", "--dataset-config", "en"], "--dataset-config is for --dataset, no"),
        (["--input", "b.jsonl", "--revision", "v1"], "--revision is for --dataset, not --input; f"),
        (["--input", "b.jsonl", "--dataset", "a/b"], "--dataset is a/b, and --input is given as "),
        (["--input", "*.parquet", "--text-column", "text"], "no column 'text'"),
        (["--input", "bad.jsonl"], "bad.jsonl, line 2: "),
        (["--input", "b.jsonl", "--validation-fraction", "1.5"], "--validation-fraction is 1.5"),
        (
            ["--input", "b.jsonl", "--workers", "0"],
            "--workers is 0; expected a number from 1 to 65,536",
        ),
        (["--input", "b.jsonl", "--max-tokens", "0"], "--max-tokens is 0"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    write_parquet(tmp_path / "a.parquet", list(make_texts(3)))
    write_jsonl(tmp_path / "b.jsonl", list(make_texts(3)))
    (tmp_path / "a.pdf").write_text("content\nx\n")
    (tmp_path / "bad.jsonl").write_text('{"content": "good"}\n{"content": oops}\n')
    (tmp_path / "list.json").write_text('[{"text": "good"}]')
    (tmp_path / "empty").mkdir()
    code, _, errors = velocity("prep", "--out", "shards", *arguments, cwd=tmp_path)
    assert code == 1
    assert errors.splitlines()[-1].startswith("velocity: ")
    assert message in errors.splitlines()[-1]


def test_a_bad_file_leaves_the_good_ones_committed(tmp_path: Path) -> None:
    good = write_jsonl(tmp_path / "a.jsonl", list(make_texts(300)))
    bad = tmp_path / "b.jsonl"
    bad.write_text('{"content": "good"}\n{"content": oops}\n')
    out = tmp_path / "shards"
    with pytest.raises(ValueError, match=r"b.jsonl, line 2: "):
        prepare_quietly(out, good, bad, unit_bytes=20_000, workers=1)
    receipts = {path: path.stat().st_mtime_ns for path in (out / ".prep/units").iterdir()}
    assert receipts
    bad.write_text('{"content": "good"}\n{"content": "ok"}\n')
    manifest = prepare_quietly(out, good, bad, unit_bytes=20_000)
    assert manifest.audit["documents_read"] == 302
    assert manifest.environment["seconds"] is None  # Of several runs nobody knows the time.
    assert {path: path.stat().st_mtime_ns for path in receipts} == receipts


def test_invalid_text_is_replaced_and_counted(tmp_path: Path) -> None:
    lines = [b'{"content": "fine"}', b'{"content": "half \\ud83d"}', b'{"content": "latin \xe9"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    manifest = prepare_quietly(tmp_path / "shards", tmp_path / "a.jsonl", validation_fraction="0")
    assert manifest.audit["texts_repaired"] == 2
    stream = open_shards(tmp_path / "shards").stream("train")
    tokenizer = load_tokenizer(tmp_path / "shards" / "tokenizer.json")
    text = tokenizer.decode(stream.read(0, stream.num_tokens).tolist(), skip_special_tokens=False)
    assert text == "fine<|endoftext|>half \ufffd<|endoftext|>latin \ufffd<|endoftext|>"


def test_the_plan_cuts_large_files_and_groups_small_ones(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"small-{number:02}.txt").write_text("x" * 100)
    write_jsonl(tmp_path / "large.jsonl", list(make_texts(500)))
    prepare_quietly(tmp_path / "shards", tmp_path, unit_bytes=1000)
    units = json.loads((tmp_path / "shards/.prep/plan.json").read_text())["content"]["units"]
    pieces = [piece for unit in units for piece in unit]
    assert len([piece for piece in pieces if piece[0] == "large.jsonl"]) > 10
    assert any(len(unit) == 10 for unit in units)


def test_units_grow_with_the_data() -> None:
    sizes = [choose_unit_bytes(Policy(), total) for total in (1, 1 << 34, 1 << 40)]
    assert sizes == [8 << 20, 16 << 20, 64 << 20]


def test_names_are_paths_below_the_common_folder(tmp_path: Path) -> None:
    for name in ("x/1.txt", "x/y/1.txt", "z/2.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    inputs = [str(tmp_path / "z"), str(tmp_path / "x"), str(tmp_path / "x/1.txt")]
    expected = ["z/2.txt", "x/1.txt", "x/y/1.txt"]
    assert [source.name for source in find_sources(inputs)] == expected
    assert find_sources([str(tmp_path / "x/1.txt")]) == [
        Source("1.txt", 4, path=str(tmp_path / "x/1.txt"))
    ]


def test_a_document_that_spells_the_end_of_text_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("before<|endoftext|>after")
    prepare_quietly(tmp_path / "shards", tmp_path / "a.txt", validation_fraction="0", workers=2)
    ids = open_shards(tmp_path / "shards").stream("train").read(0, 5).tolist()
    assert np.count_nonzero(np.array(ids) == 50256) == 0


class WrongOnce:
    """A fast encoder that gives one wrong id in a document that has a certain word."""

    def __init__(self, right: Any) -> None:
        self.right = right

    def encode_batch_flat(self, texts: list[str], **options: bool) -> tuple[bytes, bytes]:
        ids, offsets = self.right.encode_batch_flat(texts, **options)
        found = np.frombuffer(ids, np.uint32).copy()
        for index, text in enumerate(texts):
            if "zebra" in text:
                found[np.frombuffer(offsets, np.uint64)[index]] += 1
        return found.tobytes(), offsets


@pytest.fixture
def wrong_encoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """fastokens as it should not be, in this process."""
    pytest.importorskip("fastokens")
    load = encoder.load_fastokens
    monkeypatch.setattr(encoder, "load_fastokens", lambda content: WrongOnce(load(content)))
    encoder.build_encoder.cache_clear()
    yield
    encoder.build_encoder.cache_clear()


@pytest.mark.usefixtures("wrong_encoder")
@pytest.mark.parametrize("place", [0, 7])
def test_an_encoder_that_differs_from_the_reference_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    texts = make_texts(20)
    texts[place] = "a zebra"
    path = write_jsonl(tmp_path / "a.jsonl", [*texts])
    if place:  # Not the first of its side, so it is drawn by its hash.
        monkeypatch.setattr("prep.text.batch.CHECKED_ONE_IN", 1)
    with pytest.raises(ValueError, match=rf"a.jsonl, row {place}: .* from token 0 on.*'a zebra'"):
        prepare_quietly(tmp_path / "shards", path, validation_fraction="0")
    assert not list((tmp_path / "shards").glob("*.bin"))
    prepare_quietly(tmp_path / "shards", path, validation_fraction="0", encoder="tokenizers")


@pytest.mark.parametrize("name", ENCODERS)
def test_a_batch_without_a_document_to_keep_is_no_error(tmp_path: Path, name: str) -> None:
    if name == "fastokens":
        pytest.importorskip("fastokens")
    path = write_jsonl(tmp_path / "a.jsonl", ["", None])
    manifest = prepare_quietly(tmp_path / "shards", path, encoder=name)
    assert not manifest.shards
    assert manifest.audit["dropped"] == {"null": 1, "empty": 1}


def test_both_encoders_give_the_same_set(source: Path, reference: Path, tmp_path: Path) -> None:
    options = {"unit_bytes": 8000, "validation_fraction": "0.2", "shard_tokens": 5000}
    prepare_quietly(tmp_path / "shards", source, encoder="tokenizers", **options)
    assert set_bytes(tmp_path / "shards") == set_bytes(reference)


def test_where_fastokens_is_not_installed_it_is_said(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_none(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("prep.tokenizer.exact.metadata.version", find_none)
    monkeypatch.setattr("prep.tokenizer.encoder.load_fastokens", find_none)
    encoder.build_encoder.cache_clear()
    said: list[str] = []
    prepare(
        Request(tmp_path / "shards", policy=Policy(), inputs=(str(source),), workers=1), said.append
    )
    assert any("fastokens is not installed" in line and "tokenizers" in line for line in said)
    assert read_manifest(tmp_path / "shards").audit["documents_read"] > 0
