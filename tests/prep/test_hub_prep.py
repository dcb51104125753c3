"""The user's main command, word for word, against a Hub on this machine."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.format import read_manifest
from shards.inspect.verify import verify_shards
from shards.reader import open_shards
from shards.tokenizer import load_tokenizer
from tests.servers.forked import Forked, run_forked
from tests.servers.hub_server import Fault, HubServer
from tests.texts import make_texts, set_bytes, write_parquet

REPO = "tiiuae/falcon-refinedweb"
CARD = b"""---
dataset_info:
  features:
  - name: content
    dtype: string
  - name: url
    dtype: string
  splits:
  - name: train
    num_bytes: 200000
    num_examples: 400
---
"""
NAMES = [f"data/train-0000{n}-of-00002-{n:016x}.parquet" for n in range(2)]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    files = {"README.md": CARD}
    for number, name in enumerate(NAMES):
        path = write_parquet(tmp_path / f"{number}.parquet", [*make_texts(200, seed=number)])
        files[name] = path.read_bytes()
    with HubServer() as server:
        server.commit(REPO, files)
        yield server


def run_prep(hub: HubServer, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`velocity prep --out shards/`, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    words = ["velocity", "prep", "--out", "shards/", *options]
    return run_forked(words, folder, hub.environment(folder / "home"))


def test_the_main_command_makes_a_set_from_the_hub(hub: HubServer, tmp_path: Path) -> None:
    """Resolve, pin, download with a hash check and retries, pack; then nothing is left to do."""
    hub.fail(NAMES[0], Fault(status=503), times=1)
    hub.fail(NAMES[1], Fault(flip_byte=1000), times=1)
    process = run_prep(hub, tmp_path / "a")
    assert process.returncode == 0, process.stderr
    assert "of disk is needed" in process.stderr
    assert "documents: 400 read" in process.stderr
    assert process.stderr.endswith("next: torchrun --nproc_per_node 1 -m train --config tiny\n")

    shards = tmp_path / "a" / "shards"
    manifest = read_manifest(shards)
    source = manifest.content["sources"]
    assert source["hub"]["repo"] == REPO
    assert len(source["hub"]["revision"]) == 40
    assert [(file["name"], file["rows"]) for file in source["files"]] == [(n, 200) for n in NAMES]
    assert [fault for _, fault in verify_shards(shards) if fault] == []
    assert list((shards / ".prep/downloads").iterdir()) == []
    stream = open_shards(shards).stream("train")
    tokenizer = load_tokenizer(shards / "tokenizer.json")
    text = tokenizer.decode(stream.read(0, stream.num_tokens).tolist(), skip_special_tokens=False)
    assert make_texts(200)[150] in text

    asked = len(hub.requests)
    again = run_prep(hub, tmp_path / "a")
    assert again.returncode == 0
    assert "this set is finished already" in again.stderr
    assert len(hub.requests) == asked


def test_killed_it_goes_on_at_the_pinned_revision(hub: HubServer, tmp_path: Path) -> None:
    whole = run_prep(hub, tmp_path / "whole", "--unit-bytes", "100")
    assert whole.returncode == 0, whole.stderr

    hub.fail(NAMES[1], Fault(stall_after=500), times=1, method="GET")
    folder = tmp_path / "killed"
    folder.mkdir()
    command = ["velocity", "prep", "--out", "shards/", "--unit-bytes", "100", "--workers", "1"]
    patient = hub.environment(folder / "home") | {"HF_HUB_DOWNLOAD_TIMEOUT": "60"}
    process = Forked(command, folder, patient)
    receipt = folder / "shards/.prep/units/00000.json"
    deadline = time.monotonic() + 200
    while not receipt.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    # The branch moves on in the meantime; the run stays at the commit that it pinned.
    hub.commit(REPO, {"README.md": CARD, "data/train-00000-of-00001-0.parquet": b"other"})
    hub.faults.clear()
    first_file = sum(NAMES[0] in request.path for request in hub.requests)
    process_again = run_prep(hub, folder, "--unit-bytes", "100")
    assert process_again.returncode == 0, process_again.stderr
    assert sum(NAMES[0] in request.path for request in hub.requests) == first_file
    assert set_bytes(folder / "shards") == set_bytes(tmp_path / "whole" / "shards")
    ids = [read_manifest(tmp_path / n / "shards").dataset_id for n in ("whole", "killed")]
    assert ids[0] == ids[1]


def test_a_set_that_does_not_fit_the_disk_is_refused_before_any_download(
    hub: HubServer, tmp_path: Path
) -> None:
    """RefinedWeb's own card: 2.77 TB of text."""
    card = CARD.replace(b"200000", b"2766953721769000")
    hub.commit(REPO, {"README.md": card, NAMES[0]: b"x" * 2000})
    process = run_prep(hub, tmp_path / "a")
    assert process.returncode == 1
    assert "of disk is needed" in process.stderr.splitlines()[-1]
    assert "is free; free some, or choose another --out" in process.stderr.splitlines()[-1]
    assert not any(NAMES[0] in r.path and r.method == "GET" for r in hub.requests)
