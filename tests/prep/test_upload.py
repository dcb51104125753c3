"""`velocity prep --out s3://...`: what is committed is sent while the rest is being made."""

import signal
import time
from pathlib import Path

import pytest

from shards.exchange.pull import pull_shards
from shards.exchange.push import push_shards
from shards.exchange.storage import open_storage
from tests.servers.forked import Forked
from tests.servers.held import hold
from tests.servers.s3_server import S3Server
from tests.stored import (
    environment,
    files_of,
    finished_set,
    ignore,
    run_command,
    server,
    url,
)
from tests.texts import make_texts, prepare_quietly, write_parquet

# Fixtures of all tests of storage.
__all__ = ["environment", "finished_set", "server", "url"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Text of six units."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(6):
        write_parquet(folder / f"{number}.parquet", [*make_texts(400, seed=number)])
    return folder


def prep_to(url: str, source: Path, staging: Path, *options: object) -> list[str]:
    """The command that makes a set of `source` at `url`."""
    command = ["prep", "--out", url, "--staging", str(staging)]
    command += ["--input", str(source), "--validation-fraction", "0.1", "--unit-bytes", "20000"]
    return [*command, "--workers", "1", *map(str, options)]


def test_prep_sends_what_it_commits_and_goes_on_after_a_kill(
    source: Path, tmp_path: Path, url: str, server: S3Server
) -> None:
    staging = tmp_path / "staging"
    command = prep_to(url, source, staging, "--compress")
    process = Forked(["velocity", *command], setup=hold_fourth_unit)
    storage = open_storage(url)
    while process.poll() is None and len(storage.list_files()) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = set(storage.list_files())
    assert "manifest.json" not in there
    assert not (staging / "manifest.json").exists()

    before = len(server.requests("PUT"))
    run = run_command(*command)
    assert run.returncode == 0, run.stderr
    sent = [path.rsplit("/", 1)[1] for path in server.requests("PUT")[before:]]
    sent = [name for name in sent if name]  # pyarrow leaves a folder's mark where it deletes.
    assert not set(sent) & there
    assert sorted(sent) == sorted(set(sent))
    assert sent[-1] == "manifest.json"
    assert "upload.json" not in storage.list_files()
    assert any(name.endswith(".bin.zst") for name in storage.list_files())
    manifest = pull_shards(url, tmp_path / "pulled", ignore)
    straight = prepare_quietly(
        tmp_path / "straight", source, validation_fraction="0.1", unit_bytes=20000
    )
    assert manifest.dataset_id == straight.dataset_id
    assert files_of(tmp_path / "pulled") == files_of(staging)


def hold_fourth_unit() -> None:
    """Never end it, so that shards are sent before the set is finished."""
    import prep.upload

    hold("prep.engines.local", "process_unit", 3)
    prep.upload.LOOK_SECONDS = 0.1


def test_what_is_not_final_is_sent_when_the_set_is_finished(
    source: Path, tmp_path: Path, url: str
) -> None:
    command = prep_to(url, source, tmp_path / "staging", "--max-documents", 900, "--dedup", "exact")
    run = run_command(*command)
    assert run.returncode == 0, run.stderr
    pull_shards(url, tmp_path / "pulled", ignore)
    assert files_of(tmp_path / "pulled") == files_of(tmp_path / "staging")


def test_prep_asks_the_storage_before_it_begins(
    finished_set: Path, source: Path, tmp_path: Path, url: str
) -> None:
    wanted = "s3://no-such-one/set: there is no such bucket"
    push_shards(finished_set, url, ignore)
    for place, message in ((url, "holds a finished set"), ("s3://no-such-one/set", wanted)):
        run = run_command(*prep_to(place, source, tmp_path / "staging"))
        assert run.returncode == 1
        assert message in run.stderr
        assert not (tmp_path / "staging").exists()
    run = run_command("prep", "--out", tmp_path / "local", "--input", source, "--compress")
    assert "--compress is for an --out that is a URL" in run.stderr


def test_prep_names_the_url_in_what_is_to_be_run_next(
    finished_set: Path, source: Path, tmp_path: Path, url: str
) -> None:
    staging = tmp_path / "staging"
    command = prep_to(url, source, staging, "--part", "0/2")
    run = run_command(*command)
    assert f"velocity prep --out {url} --staging {staging} --finish" in run.stderr
    push_shards(finished_set, f"{url}/whole", ignore)
    command = prep_to(f"{url}/whole", source, tmp_path / "gone", "--append")
    run = run_command(*command)
    assert f"velocity shards pull {url}/whole {tmp_path / 'gone'}" in run.stderr
