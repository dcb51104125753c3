"""The whole command against a Hub that fails in every way it knows, with several files at once."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prep.planning.forecast import count_units_on_disk
from prep.remote.pinned import choose_local_name
from shards.format import read_manifest
from shards.inspect.verify import verify_shards
from tests.servers.forked import Forked, run_forked
from tests.servers.hub_server import STALL_SECONDS, Fault, HubServer, Request, wait_little
from tests.texts import make_texts, set_bytes, write_parquet

REPO = "owner/corpus"
NUM_FILES = 10
NAMES = [f"data/train-{n:05d}.parquet" for n in range(NUM_FILES)]
CARD = b"""---
dataset_info:
  features:
  - name: content
    dtype: string
  splits:
  - name: train
    num_bytes: 600000
    num_examples: 1000
---
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("files")
    files = {"README.md": CARD}
    for number, name in enumerate(NAMES):
        path = write_parquet(folder / f"{number}.parquet", [*make_texts(100, seed=number)])
        files[name] = path.read_bytes()
    return files


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[HubServer]:
    with HubServer() as server:
        server.commit(REPO, files)
        yield server


@pytest.fixture(scope="module")
def whole(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set as a Hub without faults gives it."""
    folder = tmp_path_factory.mktemp("whole")
    with HubServer() as server:
        server.commit(REPO, files)
        assert run_prep(server, folder).returncode == 0
    return folder / "shards"


def prep_command(*options: str) -> list[str]:
    words = ["velocity", "prep", "--out", "shards", "--dataset", REPO]
    return [*words, "--unit-bytes", "100", "--workers", "1", *options]


def run_prep(
    hub: HubServer, folder: Path, *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    environment = hub.environment(folder / "home") | variables
    return run_forked(prep_command(*options), folder, environment, wait_little)


def fetched(hub: HubServer) -> list[str]:
    """The names of the data files whose content was asked for, in that order."""
    paths = [request.path for request in hub.requests if request.method == "GET"]
    return [
        path[path.index("data/") :] for path in paths if "/resolve/" in path and "data/" in path
    ]


def assert_one_line(done: subprocess.CompletedProcess[str], message: str) -> None:
    """The command ended with this message in its last line, and with no traceback."""
    assert done.returncode == 1, done.stderr
    assert re.search(message, done.stderr.splitlines()[-1]), done.stderr
    assert done.stderr.splitlines()[-1].startswith("velocity: ")
    assert "Traceback" not in done.stderr


def test_all_faults_in_one_run_change_no_byte_and_the_disk_holds_few_files(
    hub: HubServer, whole: Path, tmp_path: Path
) -> None:
    faults = [
        Fault(429),
        Fault(429, (("Retry-After", "1"),)),
        Fault(500),
        Fault(503),
        Fault(cut_after=1000),
        Fault(stall_after=1000),
        Fault(flip_byte=1500),
    ]
    for name, fault in zip(NAMES, faults, strict=False):
        hub.fail(f"{name}", fault, method="GET")
    hub.fail(NAMES[8], Fault(503), method="HEAD", times=3)
    downloads = tmp_path / "shards/.prep/downloads"
    num_on_disk: list[int] = []
    asked_at: list[float] = []
    lock = threading.Lock()

    def watch(request: Request) -> None:
        if request.method == "GET" and NAMES[1] in request.path:
            asked_at.append(time.monotonic())
        if request.method == "GET" and "/resolve/" in request.path and "data/" in request.path:
            names = {
                path.name.removeprefix(".").removesuffix(".part") for path in downloads.iterdir()
            }
            with lock:  # The branch moves while the run is at it; the run is pinned.
                num_on_disk.append(len(names))
                if len(num_on_disk) == 3:
                    hub.commit(REPO, {"README.md": CARD, NAMES[0]: b"other" * 1000})

    hub.watch = watch
    before = hub.repos[REPO].branches["main"]
    done = run_prep(hub, tmp_path, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert hub.repos[REPO].branches["main"] != before
    assert not any(planned.times for planned in hub.faults)
    assert set_bytes(tmp_path / "shards") == set_bytes(whole)
    assert read_manifest(tmp_path / "shards").dataset_id == read_manifest(whole).dataset_id
    assert [fault for _, fault in verify_shards(tmp_path / "shards") if fault] == []
    assert 1 < max(num_on_disk) <= count_units_on_disk(2, NUM_FILES) < NUM_FILES
    assert list(downloads.iterdir()) == []
    for name in (NAMES[2], NAMES[3], NAMES[6]):
        assert re.search(rf"velocity: {REPO}: {name}: .*; try 2 of 8 in", done.stderr)
    first, second = asked_at[:2]
    assert second - first >= 1, "Retry-After asked for a second"


def test_a_file_that_vanished_ends_the_run_and_what_is_committed_stays(
    hub: HubServer, whole: Path, tmp_path: Path, files: dict[str, bytes]
) -> None:
    commit = hub.repos[REPO].branches["main"]

    def vanish(request: Request) -> None:
        if f"/resolve/{commit}/{NAMES[7]}" in request.path:
            hub.repos[REPO].commits[commit].pop(NAMES[7], None)

    hub.watch = vanish
    done = run_prep(hub, tmp_path, "--workers", "2")
    assert_one_line(done, f"{REPO}: {NAMES[7]} is gone from commit {commit}; .*start over")
    receipts = {path.stem for path in (tmp_path / "shards/.prep/units").glob("*.json")}
    # Six may lie on the disk, so this one was asked for when two were done.
    assert len(receipts) >= 2
    hub.watch = lambda request: None
    hub.repos[REPO].commits[commit][NAMES[7]] = files[NAMES[7]]
    hub.requests.clear()
    assert run_prep(hub, tmp_path).returncode == 0
    assert not {NAMES[int(receipt)] for receipt in receipts} & set(fetched(hub))
    assert set_bytes(tmp_path / "shards") == set_bytes(whole)


def test_a_hub_that_fails_for_good_is_one_line_and_the_run_goes_on_later(
    hub: HubServer, whole: Path, tmp_path: Path
) -> None:
    def break_down(request: Request) -> None:
        if NAMES[7] in request.path and not hub.faults:
            hub.fail("/", Fault(503), times=10**6, method="GET")

    hub.watch = break_down
    done = run_prep(hub, tmp_path)
    assert_one_line(done, r"HTTP 503, after 8 tries; check the network and run the same command")
    hub.watch = lambda request: None
    hub.faults.clear()
    hub.requests.clear()
    num_done = len(list((tmp_path / "shards/.prep/units").glob("*.json")))
    assert run_prep(hub, tmp_path).returncode == 0
    assert num_done > 0
    assert len(fetched(hub)) <= NUM_FILES - num_done
    assert hub.count("/api/datasets/") == 0  # pinned: the Hub is not asked for the files again
    assert set_bytes(tmp_path / "shards") == set_bytes(whole)


def test_no_network_at_all_is_one_line(hub: HubServer, tmp_path: Path) -> None:
    done = run_prep(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:1")
    assert_one_line(done, "refused, after 8 tries; check the network .* or prepare local files")
    assert hub.requests == []


def test_a_gated_set_needs_a_token_from_the_start_or_from_the_middle(
    hub: HubServer, whole: Path, tmp_path: Path
) -> None:
    hub.repos[REPO].gated = True
    message = f"{REPO}: is gated; accept its terms at http.*, then log in with `hf auth login`"
    assert_one_line(run_prep(hub, tmp_path / "start"), message)
    assert fetched(hub) == []

    hub.repos[REPO].gated = False

    def close(request: Request) -> None:
        if NAMES[3] in request.path:
            hub.repos[REPO].gated = True

    hub.watch = close
    assert_one_line(run_prep(hub, tmp_path), message)
    assert run_prep(hub, tmp_path, HF_TOKEN="hf_of_the_test").returncode == 0
    assert set_bytes(tmp_path / "shards") == set_bytes(whole)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_a_run_whose_downloads_hang(
    hub: HubServer, whole: Path, tmp_path: Path, workers: str
) -> None:
    for name in NAMES[3:]:
        hub.fail(name, Fault(stall_after=500), times=100)
    patient = hub.environment(tmp_path / "home") | {"HF_HUB_DOWNLOAD_TIMEOUT": "60"}
    process = Forked(prep_command("--workers", workers), tmp_path, patient, wait_little)
    units = tmp_path / "shards/.prep/units"
    deadline = time.monotonic() + 200
    while len([*units.glob("*.json")] if units.exists() else []) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - started < STALL_SECONDS
    assert process.returncode == 130
    assert "stopped; what is committed in shards stays" in said
    assert "Traceback" not in said
    hub.faults.clear()
    assert run_prep(hub, tmp_path).returncode == 0
    assert set_bytes(tmp_path / "shards") == set_bytes(whole)


def test_a_whole_file_that_a_kill_left_is_used_and_a_part_is_not(
    hub: HubServer, whole: Path, tmp_path: Path, files: dict[str, bytes]
) -> None:
    downloads = tmp_path / "shards/.prep/downloads"
    downloads.mkdir(parents=True)
    half = files[NAMES[1]][:2000]
    changed = files[NAMES[2]][:-1] + b"?"
    for name, content in zip(NAMES, (files[NAMES[0]], half, changed), strict=False):
        (downloads / choose_local_name(name)).write_bytes(content)
    begun = downloads / f".{choose_local_name(NAMES[3])}.part"
    begun.mkdir()
    (begun / "something.incomplete").write_bytes(b"x")
    assert run_prep(hub, tmp_path).returncode == 0
    assert sorted(fetched(hub)) == NAMES[1:]
    assert set_bytes(tmp_path / "shards") == set_bytes(whole)
    assert list(downloads.iterdir()) == []


def test_a_short_run_fetches_one_file(hub: HubServer, tmp_path: Path) -> None:
    done = run_prep(hub, tmp_path, "--max-tokens", "300")
    assert done.returncode == 0, done.stderr
    assert fetched(hub) == NAMES[:1]


def test_a_sample_of_the_hub_fetches_its_files_alone_and_stays_the_same(
    hub: HubServer, tmp_path: Path
) -> None:
    done = run_prep(hub, tmp_path, "--sample", "0.3")
    assert done.returncode == 0, done.stderr
    assert "3 files (a sample, 0.3 of all)" in done.stderr
    manifest = read_manifest(tmp_path / "shards")
    taken = [file["name"] for file in manifest.content["sources"]["files"]]
    assert sorted(fetched(hub)) == taken
    assert len(taken) == 3
    assert manifest.content["policy"]["sample"] == "0.3"
    run_prep(hub, tmp_path / "b", "--sample", "0.3", "--workers", "2")
    assert read_manifest(tmp_path / "b/shards").dataset_id == manifest.dataset_id
    assert_one_line(run_prep(hub, tmp_path, "--sample", "0.5"), r"sample was 0\.3, is now 0\.5")


def test_a_dataset_of_5534_files_starts_quickly_and_asks_little(
    hub: HubServer, tmp_path: Path, files: dict[str, bytes]
) -> None:
    """The Hub allows 500 requests in five minutes to who has no account."""
    names = [f"data/train-{n:05d}-of-05534-{n * 7919:016x}.parquet" for n in range(5534)]
    hub.commit(REPO, {"README.md": CARD} | dict.fromkeys(names, files[NAMES[0]]))
    started = time.monotonic()
    done = run_prep(hub, tmp_path, "--max-documents", "250")
    assert done.returncode == 0, done.stderr
    assert "5,534 files" in done.stderr
    assert "in 5,534 units" in done.stderr
    assert "documents: 250 read" in done.stderr
    assert time.monotonic() - started < 300
    assert sum("/api/" in request.path for request in hub.requests) < 50
