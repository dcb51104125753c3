"""What can go wrong under `velocity prep`, and what is then said and kept: docs/faults.md."""

import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prep.files.stamp import check_stamp, take_stamp
from prep.readers.documents import Documents, Piece
from prep.readers.formats import read_documents
from prep.sources.local import Source, find_sources
from shards.format import read_manifest
from shards.inspect.verify import verify_shards
from shards.reader import open_shards
from shards.tokenizer import load_tokenizer
from tests.commands import velocity
from tests.servers.forked import Forked
from tests.servers.forks import assert_kept, list_committed
from tests.servers.held import hold_after
from tests.servers.kill_prep import find_children
from tests.servers.killed import hash_files
from tests.texts import make_texts, prepare_quietly, write_jsonl, write_parquet

VELOCITY = [sys.executable, "-m", "cli"]
OPTIONS = {"unit_bytes": 9000, "validation_fraction": "0.3"}


def as_arguments(**options: object) -> list[str]:
    """Policy options as they are typed."""
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in options.items())
    return [word for pair in pairs for word in pair]


def make_rare_texts(count: int, seed: int) -> list[str | None]:
    """Texts of many tokens a byte, so that they need more disk than prep expects."""
    generator = random.Random(seed)
    characters = [*map(chr, range(33, 127)), *map(chr, range(0x4E00, 0x4E60))]
    return ["".join(generator.choices(characters, k=150)) for _ in range(count)]


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files, three units; some documents are copies."""
    folder = tmp_path_factory.mktemp("rare")
    texts = make_rare_texts(60, seed=1)
    write_jsonl(folder / "a.jsonl", [*texts, *texts[:5]])
    write_jsonl(folder / "b.jsonl", [*make_rare_texts(60, seed=2), *texts[5:9]])
    return folder


# The disk


def try_full_disk(folder: Path, source: Path, kind: str, **options: object) -> list[dict[str, Any]]:
    """Runs of tests/servers/full_disk.py; each ended in the set that a run without faults makes."""
    reference = folder / "reference"
    prepare_quietly(reference, source, **options)
    plan_bytes = (reference / ".prep/plan.json").stat().st_size
    manifest_bytes = (reference / "manifest.json").stat().st_size
    request = {
        "folder": str(folder / "disk"),
        "tokenizer": str(reference / "tokenizer.json"),
        "kind": kind,
        "pages": 3 if "dedup" in options else 2,
        "limits": [plan_bytes, (plan_bytes + manifest_bytes) // 2, manifest_bytes - 1],
        "command": ["--input", str(source), "--workers", "1", *as_arguments(**options)],
        "rewrites": "dedup" in options,
    }
    (folder / "disk").mkdir()
    command = [sys.executable, "-m", "tests.servers.full_disk", json.dumps(request)]
    if kind != "limit":
        allowed = subprocess.run(["unshare", "-rm", "true"], capture_output=True)
        if allowed.returncode:
            pytest.skip("mounting is not allowed here")
        command = ["unshare", "-rm", *command]
    process = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert process.returncode == 0, process.stderr[-3000:]
    tries = [json.loads(line) for line in process.stdout.splitlines()]
    for found in tries:
        assert found["files"] == hash_files(reference), found["limit"]
        assert found["left"] == []
    return tries


FULL = r"No space left on device"
AGAIN = r"free some disk and run the same command again"
FOLDERS = [rf"{name}: {FULL}; {AGAIN}$" for name in ("/units", "/tmp", "/lock", "/lock.holder")]
SMALL_FILES = [rf"/{name}: {FULL}; {AGAIN}$" for name in (r"tokenizer.json-\w+", "plan.json")]
UNIT = rf": unit \d could not be written \({FULL}\); {AGAIN}; what is committed stays$"
DEDUP = rf": a unit could not be rewritten \({FULL}\); {AGAIN}; what is committed stays$"
FORECAST = r": about .* of disk is needed in .*, and .* is free; free some, or choose another --out"
TOO_LARGE = r"File too large\)?; raise that limit \(ulimit -f\) and run the same command again"


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("inodes", {"dedup": "exact"}, [*FOLDERS, *SMALL_FILES, UNIT, DEDUP]),
        ("bytes", {"dedup": "exact"}, [SMALL_FILES[0], FORECAST, UNIT, DEDUP]),
        ("bytes", {}, [SMALL_FILES[0], FORECAST, UNIT, rf"/manifest.json: {FULL}; {AGAIN}$"]),
        (
            "limit",
            {"unit_bytes": 1500},
            [
                rf"/lock.holder: {TOO_LARGE}$",
                rf"/plan.json: {TOO_LARGE}$",
                rf": unit 0 could not be written \({TOO_LARGE}; what is committed stays$",
                rf"/manifest.json: {TOO_LARGE}$",
            ],
        ),
    ],
    ids=["files", "bytes with dedup", "bytes", "limit"],
)
def test_a_full_disk_at_each_write_is_one_line_and_loses_nothing(
    tmp_path: Path, rare: Path, kind: str, options: dict[str, Any], expected: list[str]
) -> None:
    tries = try_full_disk(tmp_path, rare, kind, **OPTIONS | options)
    lasts = []
    for found in tries:
        lasts.append(found["said"][-1])
        assert found["code"] == int(lasts[-1].startswith("velocity: ")), found
        assert sum("velocity: " in line for line in found["said"]) == found["code"], found["said"]
        assert "Traceback" not in str(found["said"])
    assert any(found["code"] and found["committed"] for found in tries)
    for pattern in expected:
        assert any(re.search(pattern, line) for line in lasts), (pattern, lasts)
    if kind != "limit":
        assert tries[-1]["code"] == 0


def test_a_read_only_disk_is_one_line_and_the_set_stays(tmp_path: Path, rare: Path) -> None:
    out = tmp_path / "disk" / "shards"
    prepare_quietly(out, rare, **OPTIONS)
    before = hash_files(out)
    (out / "manifest.json").unlink()
    (out / ".prep/units/00001.json").unlink()
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    arguments = ["prep", "--out", str(out), "--input", str(rare), *as_arguments(**OPTIONS)]
    command = ["unshare", "-rm", "sh", "-c", script, str(out.parent), *VELOCITY, *arguments]
    process = subprocess.run(command, capture_output=True, text=True)
    if "mount:" in process.stderr or "unshare:" in process.stderr:
        pytest.skip("mounting is not allowed here")
    assert process.returncode == 1
    assert process.stderr.splitlines() == [
        f"velocity: {out}/.prep/lock: Read-only file system; "
        "make it writable and run the same command again, or choose another folder"
    ]
    prepare_quietly(out, rare, **OPTIONS)
    assert hash_files(out) == before


def test_an_output_that_cannot_be_made_is_named(tmp_path: Path, rare: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, errors = velocity("prep", "--out", tmp_path / "file" / "shards", "--input", rare)
    lines = errors.splitlines()
    assert (code, lines) == (1, [f"velocity: {tmp_path}/file: Not a directory"])


# Sources that change


@pytest.fixture
def two_files(tmp_path: Path) -> Path:
    """Files of one unit each; what is read first can change the second."""
    (tmp_path / "source").mkdir()
    for name in "ab":
        write_jsonl(tmp_path / "source" / f"{name}.jsonl", [*make_texts(40)])
    return tmp_path / "source"


def append_line(path: Path) -> None:
    with open(path, "a") as file:
        file.write('{"content": "one more"}\n')


def exchange_a_word(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"the", b"THE", 1))
    os.utime(path, ns=(1, 1))


CHANGES: list[tuple[Callable[[Path], object], str]] = [
    (append_line, r"was changed during the run \(had [\d,]+ bytes, has [\d,]+\); put it back and"),
    (exchange_a_word, r"was changed during the run \(still has [\d,]+ bytes, and was written to\)"),
    (Path.unlink, r"disappeared during the run \(No such file or directory\); put it back and run"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=["longer", "other words", "gone"])
@pytest.mark.parametrize("moment", ["before it is read", "while it is read"])
def test_a_source_that_changes_during_the_run_is_told_and_put_back_it_goes_on(
    two_files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
    message: str,
    moment: str,
) -> None:
    # Files of one piece each, so that only the look behind the last read can find the second.
    reference = prepare_quietly(tmp_path / "reference", two_files, unit_bytes=8000)
    path, out = two_files / "b.jsonl", tmp_path / "shards"
    content, times = path.read_bytes(), path.stat()

    def read_and_change(piece: Piece, *arguments: Any) -> Iterator[Documents]:
        """Change b.jsonl when the last piece of a.jsonl was read, or the first one of its own."""
        yield from read_documents(piece, *arguments)
        if piece.name == ("a.jsonl" if moment == "before it is read" else "b.jsonl"):
            monkeypatch.setattr("prep.units.work.read_documents", read_documents)
            change(path)

    monkeypatch.setattr("prep.units.work.read_documents", read_and_change)
    with pytest.raises(ValueError, match=rf"b.jsonl: {message}"):
        prepare_quietly(out, two_files, unit_bytes=8000)
    committed = list_committed(out)
    assert len(committed) >= 2
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert prepare_quietly(out, two_files, unit_bytes=8000).dataset_id == reference.dataset_id
    assert_kept(committed, list_committed(out))


def test_a_file_that_is_garbage_because_it_changed_is_told_as_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*make_texts(40)])
    find = find_sources

    def find_and_change(inputs: Sequence[str], *others: Any) -> list[Source]:
        found = find(inputs, *others)
        path.write_text("no JSON\n")
        return found

    monkeypatch.setattr("prep.planning.plan.find_sources", find_and_change)
    with pytest.raises(ValueError, match=r"a.jsonl: was changed during the run \(had"):
        prepare_quietly(tmp_path / "shards", path)


def test_a_source_of_another_size_is_refused_on_going_on(two_files: Path, tmp_path: Path) -> None:
    prepare_quietly(tmp_path / "shards", two_files)
    (tmp_path / "shards/manifest.json").unlink()
    append_line(two_files / "b.jsonl")
    with pytest.raises(ValueError, match=r"b.jsonl had [\d,]+ bytes, has [\d,]+; run the command"):
        prepare_quietly(tmp_path / "shards", two_files)


def test_a_file_on_another_machine_may_have_another_time(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["a"])
    check_stamp(path, take_stamp(path)._replace(mtime_ns=1, machine="another"))
    with pytest.raises(ValueError, match="was written to"):
        check_stamp(path, take_stamp(path)._replace(mtime_ns=1))
    with pytest.raises(ValueError, match="had 1 bytes, has "):
        check_stamp(path, take_stamp(path)._replace(num_bytes=1, machine="another"))


# Damaged sources


@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
@pytest.mark.parametrize("checksums", [True, False])
def test_a_bit_that_flips_in_a_parquet_file(
    tmp_path: Path, checksums: bool, compression: str
) -> None:
    """With checksums in the file it is noticed anywhere, else where it breaks the format."""
    texts = [f"{number * 7919 % 10007} words" for number in range(2000)]
    path = tmp_path / "a.parquet"
    options: dict[str, Any] = {"compression": compression, "write_page_checksum": checksums}
    pq.write_table(pa.table({"content": texts}), path, **options)
    whole = path.read_bytes()
    pages = pq.ParquetFile(path).metadata.row_group(0).column(0).total_compressed_size
    generator = random.Random(3)
    num_wrong = 0
    said: list[str] = []
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[generator.randrange(4, pages)] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            batches = [*read_documents(Piece(str(path), "a.parquet"), "content")]
        except ValueError as error:
            said.append(str(error))
        else:
            found = [text for documents in batches for text in documents.texts.to_pylist()]
            num_wrong += found != texts
    assert num_wrong == 0 or not checksums
    assert said
    for line in said:
        assert line.startswith(f"{path}: damaged, cut short, or not what its name says")
        assert "\n" not in line


def test_a_truncated_parquet_file_is_one_line_and_the_others_are_kept(tmp_path: Path) -> None:
    good = write_parquet(tmp_path / "a.parquet", [*make_texts(60)])
    path = write_parquet(tmp_path / "b.parquet", [*make_texts(60, seed=1)])
    whole = path.read_bytes()
    options = {"unit_bytes": 1000}
    out = tmp_path / "shards"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"b.parquet: damaged, cut short, or not what its name"):
        prepare_quietly(out, good, path, **options)
    path.write_bytes(whole[:200] + bytes(200) + whole[400:])  # Its footer is whole.
    with pytest.raises(ValueError, match=r"b.parquet: damaged, cut short, or not what its name"):
        prepare_quietly(out, good, path, **options)
    committed = list_committed(out)
    assert committed
    path.write_bytes(whole)
    assert prepare_quietly(out, good, path, **options).audit["documents_read"] == 120
    assert_kept(committed, list_committed(out))


# What documents may hold


def measure_memory(source: Path, out: Path) -> tuple[subprocess.CompletedProcess[str], int]:
    """`velocity prep` of a file in a process of its own, and the MiB that it held at most."""
    script = (
        "import re, sys; from tests.servers.killed import run_velocity; "
        "code = run_velocity(sys.argv[1:]); "
        # Not ru_maxrss, which begins with the memory of the process that started this one.
        "status = open('/proc/self/status').read(); "
        "print(int(re.search(r'VmHWM:\\s*(\\d+)', status)[1]) // 1024); sys.exit(code)"
    )
    arguments = ["prep", "--out", out, "--input", source, "--workers", "1"]
    process = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True
    )
    return process, int(process.stdout)


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [
        (
            "a.jsonl",
            b'{"content": "a document"}\n{"content": "',
            "line 2: a document of more than 256 MiB; expected a document on each line; split it, "
            "or leave it out",
        ),
        (
            "a.json",
            b'[{"content": "a document"},\n{"content": "',
            "item 1: a document of more than 256 MiB; each item is a document; split it, or leave "
            "it out",
        ),
        (
            "a.csv",
            b'content\na document\n"',
            "row 1, line 3: a row of more than 64 Mi characters, as a quote that nothing closes "
            "makes it; close it, or split the row",
        ),
    ],
    ids=["lines", "list", "table"],
)
def test_a_line_of_a_billion_characters_is_refused_with_little_memory(
    tmp_path: Path, name: str, start: bytes, message: str
) -> None:
    path = tmp_path / name
    with open(path, "wb") as file:
        file.write(start)
        # A hole, which takes no disk.
        file.seek(1_000_000_000 if name == "a.jsonl" else 300_000_000)
        file.write(b'"}]')
    process, num_mebibytes = measure_memory(path, tmp_path / "shards")
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == f"velocity: {path}, {message}"
    assert num_mebibytes < 1000


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".txt"])
def test_documents_of_100_mb_take_less_than_a_gibibyte(tmp_path: Path, suffix: str) -> None:
    text = "Some words, again and again. " * 3_500_000
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        write_parquet(path, [text, text])
    elif suffix == ".jsonl":
        write_jsonl(path, [text, text])
    else:
        path.write_text(text)
    process, num_mebibytes = measure_memory(path, tmp_path / "shards")
    assert process.returncode == 0, process.stderr
    assert num_mebibytes < 1024


STRANGE = "nul \0 bell \a escape \x1b del \x7f next line \x85 \u2028 mark \ufeff \u202e last \ufffe"


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "txt"])
def test_control_characters_come_through_as_they_are(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        write_jsonl(path, [STRANGE])
    elif suffix == "parquet":
        write_parquet(path, [STRANGE])
    else:
        path.write_text(STRANGE, encoding="utf-8")
    manifest = prepare_quietly(tmp_path / "shards", path, validation_fraction="0")
    assert manifest.audit["texts_repaired"] == 0
    stream = open_shards(tmp_path / "shards").stream("train")
    tokens = stream.read(0, stream.num_tokens).tolist()
    tokenizer = load_tokenizer(tmp_path / "shards" / "tokenizer.json")
    assert tokenizer.decode(tokens[:-1], skip_special_tokens=False) == STRANGE


def test_sources_without_a_document_make_an_empty_set_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.txt").touch()
    write_parquet(tmp_path / "c.parquet", [])
    write_parquet(tmp_path / "d.parquet", [None, "", None])
    code, _, errors = velocity("prep", "--out", tmp_path / "shards", "--input", tmp_path)
    lines = errors.splitlines()
    assert code == 0
    assert any(line.startswith("documents: 4 read = 0 train + 0 validation + 4") for line in lines)
    assert "no document was kept, so there is nothing to train on" in lines[-1]


# Clocks


def test_a_clock_that_jumps_changes_nothing(
    rare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forwards and backwards, by years, at every look."""
    reference = prepare_quietly(tmp_path / "reference", rare, **OPTIONS)
    jumps = itertools.cycle([0.0, 4e9, 1e9, 2e9])
    gmtime = time.gmtime
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    monkeypatch.setattr(time, "gmtime", lambda *when: gmtime(*when or (next(jumps),)))
    out = tmp_path / "shards"
    manifest = prepare_quietly(out, rare, **OPTIONS)
    assert manifest.dataset_id == reference.dataset_id
    assert 0 <= manifest.environment["seconds"] < 100
    for path in [*out.rglob("*.json")]:
        os.utime(path, (next(jumps), next(jumps)))
    (out / "manifest.json").unlink()
    committed = list_committed(out)
    assert prepare_quietly(out, rare, **OPTIONS).dataset_id == reference.dataset_id
    assert_kept(committed, list_committed(out))


def test_nothing_measures_with_a_clock_that_can_jump() -> None:
    root = Path(__file__).parents[2]
    for path in [*(root / "prep").glob("*.py"), *(root / "shards").glob("*.py")]:
        assert not re.search(r"\btime\.time\(|datetime\.now\(\)", path.read_text()), path


# Two at once, and workers that die


def test_of_two_commands_on_one_output_the_second_is_refused(tmp_path: Path, rare: Path) -> None:
    """Both at the same moment, and one behind the other; the first makes the right set."""
    reference = prepare_quietly(tmp_path / "reference", rare, **OPTIONS)
    out = tmp_path / "shards"
    command = ["prep", "--out", str(out), "--input", str(rare), *as_arguments(**OPTIONS)]

    def begin(setup: Callable[[], None] | None = None) -> Forked:
        return Forked(["velocity", *command, "--workers", 1], setup=setup)

    def assert_refused(process: Forked, error: str) -> None:
        found = r": another velocity prep is running there \(.*, process \d+, since .*\); wait"
        assert process.returncode == 1
        assert re.search(found, error.splitlines()[-1])

    first = begin(hold_after("prep.engines.local", "process_unit", 0))
    while not (out / ".prep/plan.json").exists():
        assert first.poll() is None
        time.sleep(0.002)
    second = begin()
    assert_refused(second, second.communicate()[1])
    first.kill()
    first.communicate()
    processes = [begin() for _ in range(2)]
    for process in processes:
        error = process.communicate()[1]
        if process.returncode:
            assert_refused(process, error)
    assert 0 in [process.returncode for process in processes]
    assert read_manifest(out).dataset_id == reference.dataset_id
    assert hash_files(out) == hash_files(tmp_path / "reference")


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda: os._exit(7), r"3 workers in a row ended with exit code 7 .* --workers 1 does"),
        (lambda: os.kill(os.getpid(), 9), r"were killed .* lack of memory; try again with fewer"),
        (lambda: os.kill(os.getpid(), 15), r"died while working on this file \(Terminated\); "),
    ],
)
def test_how_workers_died_is_told_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[], None], message: str
) -> None:
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr("prep.engines.local.work", lambda connection, counters: end())
    monkeypatch.setattr("prep.engines.local.multiprocessing.get_context", lambda method: fork)
    path = write_jsonl(tmp_path / "a.jsonl", [*make_texts(10)])
    with pytest.raises(ValueError, match=rf"a.jsonl: .*{message}.*what is committed stays$"):
        prepare_quietly(tmp_path / "shards", path, workers=2)


def test_workers_whose_command_was_killed_end_by_themselves(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [*make_texts(20_000)])
    command = ["prep", "--out", tmp_path / "shards", "--input", source, "--unit-bytes", 2_000_000]
    process = Forked(["velocity", *command, "--workers", 2])
    deadline = time.monotonic() + 200
    while len(workers := find_children(process.pid)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    while any(is_alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# Finished sets


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train-00000.bin", r"its sha256 is not the manifest's; damaged in bytes 0 to"),
        ("train-00000.docs.parquet", r"its sha256 is not the manifest's"),
        ("tokenizer.json", r"its sha256 is not the manifest's"),
    ],
)
def test_a_flipped_byte_in_any_file_is_found_by_verify_and_made_again(
    tmp_path: Path, small_shards: Path, name: str, message: str
) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(small_shards, folder)
    flip(folder / name)
    faults = {name: fault for name, fault in verify_shards(folder) if fault}
    assert list(faults) == [name]
    assert re.search(message, faults[name])
    for path in (folder / name, folder / "manifest.json"):
        path.unlink()
    prepare_quietly(folder, small_shards.parent / "source.jsonl", validation_fraction="0.1")
    assert hash_files(folder) == hash_files(small_shards)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
