"""Files in buckets, met as a real S3 server on this machine: listed, pinned, fetched."""

import gzip
import io
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from pyarrow import fs

from prep.remote.buckets import tell_time
from prep.remote.download import download
from prep.remote.places import find_remote
from prep.remote.retry import BRIEF, PATIENT, SourceError
from shards.exchange.storage import open_storage
from shards.format import read_manifest
from tests.commands import velocity
from tests.servers.forked import Forked
from tests.servers.hub_server import Answer, HubServer, wait_little
from tests.servers.s3_server import S3Server
from tests.stored import BUCKET, environment, server
from tests.texts import make_texts, read_texts, set_bytes, write_jsonl, write_parquet

# Fixtures of all tests of storage.
__all__ = ["environment", "server"]
SECRET = "s3cr3t-5ad"
OPTIONS = ["--unit-bytes", "100", "--workers", "1", "--validation-fraction", "0.2"]


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    before = PATIENT.first_delay_seconds, PATIENT.max_delay_seconds
    wait_little()
    yield
    for retry in (BRIEF, PATIENT):
        object.__setattr__(retry, "first_delay_seconds", before[0])
        object.__setattr__(retry, "max_delay_seconds", before[1])


def put(path: str, content: bytes) -> None:
    """An object, by its path with the bucket."""
    files, _ = fs.FileSystem.from_uri(f"s3://{BUCKET}")
    with files.open_output_stream(path, compression=None) as out:
        out.write(content)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A folder of the bucket with four files of documents, and some that are none."""
    where = f"{BUCKET}/{tmp_path.name}"
    for number in range(4):
        if number % 2:
            path = write_parquet(tmp_path / "x", [*make_texts(40, seed=number)])
            put(f"{where}/en/{number}.parquet", path.read_bytes())
        else:
            path = write_jsonl(tmp_path / "x", [*make_texts(40, seed=number)])
            put(f"{where}/en/deep er/{number}#1?.jsonl.gz", gzip.compress(path.read_bytes()))
    for name in ("_SUCCESS", "en/a.pdf", "en/b.csv", "meta.json", ".tmp/x.jsonl"):
        put(f"{where}/{name}", b"{}")
    return where


def run_prep(out: Path, *words: object) -> tuple[int, str]:
    out.mkdir(exist_ok=True)
    code, _, errors = velocity("prep", "--out", "shards", *OPTIONS, *words, cwd=out)
    return code, errors


def list_names(out: Path, folder: str) -> list[str]:
    files = read_manifest(out / "shards").content["sources"]["files"]
    return [file["name"].removeprefix(f"s3://{folder}/") for file in files]


def test_a_folder_of_a_bucket_is_a_set(folder: str, tmp_path: Path) -> None:
    code, said = run_prep(tmp_path / "a", "--input", f"s3://{folder}")
    assert code == 0, said
    assert f"s3://{folder}: 4 files, " in said
    assert (
        "4 files and 1 folder left out: .csv not named by itself or as *.csv 1, .json not named by "
        "itself or as *.json 1, .pdf 1, "
        "hidden 1, hidden folders 1" in said
    )
    names = ["en/1.parquet", "en/3.parquet", "en/deep er/0#1?.jsonl.gz", "en/deep er/2#1?.jsonl.gz"]
    assert list_names(tmp_path / "a", folder) == names
    # Documents in = documents out, by another reader.
    wanted = set()
    files, _ = fs.FileSystem.from_uri(f"s3://{BUCKET}")
    for name in names:
        with files.open_input_file(f"{folder}/{name}") as file:
            content = io.BytesIO(file.read())
        packed = {"compression": "gzip", "lines": True}
        frame = pd.read_parquet(content) if "parquet" in name else pd.read_json(content, **packed)
        wanted |= set(frame["content"])
    assert set(read_texts(tmp_path / "a/shards").values()) == wanted
    assert len(wanted) > 150


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("en/1.parquet", ["en/1.parquet"]),
        ("en/*.parquet", ["en/1.parquet", "en/3.parquet"]),
        ("**/[01]*", ["en/1.parquet", "en/deep er/0#1?.jsonl.gz"]),
        ("en/deep er", ["en/deep er/0#1?.jsonl.gz", "en/deep er/2#1?.jsonl.gz"]),
        ("meta.json", ["meta.json"]),
    ],
)
def test_files_and_patterns(folder: str, pattern: str, names: list[str]) -> None:
    found = find_remote([f"s3://{folder}/{pattern}"])
    assert [file.name for file in found] == [f"s3://{folder}/{name}" for name in names]
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", file.pin) for file in found)


def test_the_same_file_named_twice_is_one(folder: str) -> None:
    urls = [f"s3://{folder}/en/3.parquet", f"s3://{folder}/en/*.parquet"]
    names = [file.name.rpartition("/")[2] for file in find_remote(urls)]
    assert names == ["3.parquet", "1.parquet"]


def test_keys_and_endpoint_in_the_url_are_used_and_kept_nowhere(
    folder: str, tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_prep(tmp_path / "a", "--input", f"s3://{folder}/en")[0] == 0
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    query = f"scheme=http&endpoint_override={server.address}&region=us-east-1"
    for name, info in (("b", f"keykeykey:{SECRET}@"), ("c", "anonymous@")):
        url = f"s3://{info}{folder}/en?{query}"
        code, said = run_prep(tmp_path / name, "--input", url)
        assert code == 0, said
        assert SECRET not in said
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    ids = {read_manifest(tmp_path / name / "shards").dataset_id for name in "abc"}
    assert len(ids) == 1


@pytest.mark.parametrize("change", ["size", "time", "gone"])
def test_an_object_that_was_changed_is_one_line(folder: str, tmp_path: Path, change: str) -> None:
    path = f"{folder}/en/1.parquet"
    [file] = find_remote([f"s3://{path}"])
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    storage = open_storage(f"s3://{folder}/en")
    content = storage.read_bytes("1.parquet")
    if change == "gone":
        storage.delete("1.parquet")
    elif change == "size":
        put(path, content[:-1])
    else:
        while tell_time(time.time_ns()) <= file.pin[:19]:
            time.sleep(0.05)
        time.sleep(1)
        put(path, content)
    message = "is gone; put it back, or" if change == "gone" else "is no longer the file that was"
    with pytest.raises(SourceError, match=f"s3://{path}: {message}"):
        download(file, downloads)
    assert list(downloads.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"{BUCKET}/none", "there is no such file or folder; check the URL"),
        (f"{BUCKET}/none/*", "no file ending in .parquet"),
        ("no-such-bucket-5/x", "there is no such"),
        ("", "names no bucket; expected one such as s3"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path: Path, path: str, message: str) -> None:
    code, said = run_prep(tmp_path / "a", "--input", f"s3://{path}")
    assert code == 1
    assert message in said.splitlines()[-1], said


def test_a_file_of_another_kind_is_one_line(folder: str, tmp_path: Path) -> None:
    code, said = run_prep(tmp_path / "a", "--input", f"s3://{folder}/en/a.pdf")
    assert code == 1
    assert f"velocity: s3://{folder}/en/a.pdf: expected a file ending in" in said


class Refusing(HubServer):
    """A storage that answers every request with a status."""

    status = 403

    def answer(self, *request: object) -> Answer:
        code = {403: "AccessDenied", 503: "SlowDown"}[self.status]
        content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>x</Message></Error>"
        return Answer(self.status, content.encode(), (("Content-Type", "application/xml"),))


@pytest.mark.parametrize(
    ("status", "message"), [(403, "access is denied"), (503, "after 2 tries; check the network")]
)
def test_a_storage_that_refuses_is_one_line(tmp_path: Path, status: int, message: str) -> None:
    with Refusing() as refusing:
        refusing.status = status
        query = f"scheme=http&endpoint_override=127.0.0.1:{refusing.server.server_port}"
        url = f"s3://anonymous@bucket/x.jsonl?{query}&region=us-east-1"
        code, said = run_prep(tmp_path / "a", "--input", url)
    assert code == 1
    assert message in said.splitlines()[-1], said
    # Who reads a public bucket signs nothing.
    assert refusing.requests
    assert not any("authorization" in map(str.lower, r.headers) for r in refusing.requests)


def test_killed_it_goes_on_and_fetches_no_finished_file_again(
    folder: str, tmp_path: Path, server: S3Server
) -> None:
    url = f"s3://{folder}/en"
    assert run_prep(tmp_path / "whole", "--input", url)[0] == 0
    (tmp_path / "killed").mkdir()
    words = ["velocity", "prep", "--out", "shards", *OPTIONS, "--input", url]
    process = Forked(words, tmp_path / "killed")
    process.kill_after(tmp_path / "killed/shards/.prep/units/00000.json")
    put(f"{folder}/en/new.jsonl", b"{}")
    before = len(server.requests("GET"))
    assert run_prep(tmp_path / "killed", "--input", url)[0] == 0
    asked = server.requests("GET")[before:]
    assert not [path for path in asked if path.endswith("1.parquet")]
    assert set_bytes(tmp_path / "killed/shards") == set_bytes(tmp_path / "whole/shards")


def test_a_set_in_the_bucket_is_no_source(folder: str, tmp_path: Path) -> None:
    for name in ("manifest.json", "tokenizer.json", "train-00000.docs.parquet"):
        put(f"{folder}/en/set/{name}", b"{}")
    said: list[str] = []
    names = [file.name for file in find_remote([f"s3://{folder}/en"], said.append)]
    assert len(names) == 4
    assert "sets of shards 1" in said[0]
