"""What the tests of object storage share: an S3 server, a finished set, and looks at both."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.exchange import transfer
from shards.exchange.storage import open_storage
from shards.format import read_manifest
from tests.commands import velocity
from tests.servers.s3_server import S3Server, run_s3_server
from tests.texts import make_texts, prepare_quietly, write_parquet

BUCKET = "sets"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with run_s3_server(tmp_path_factory.mktemp("s3"), BUCKET) as server:
        yield server


@pytest.fixture(autouse=True)
def environment(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is found as users name one, and retries do not wait."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(transfer, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture(scope="module")
def finished_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 shards: 22 of train, 3 of validation."""
    folder = tmp_path_factory.mktemp("set")
    source = write_parquet(folder / "source.parquet", [*make_texts(1500)])
    prepare_quietly(folder / "shards", source, shard_tokens=5000, validation_fraction="0.1")
    return folder / "shards"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A folder of the bucket that no other test uses."""
    return f"s3://{BUCKET}/{tmp_path.name}"


def ignore(line: str) -> None:
    """What the commands say goes nowhere."""


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def change_object(url: str, name: str, change: object) -> None:
    assert callable(change)
    storage = open_storage(url)
    storage.write(name, [change(storage.read_bytes(name))])


def flip_byte(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


def run_command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, in this process."""
    return subprocess.CompletedProcess(arguments, *velocity(*arguments, environment=environment))


def read_shards(folder: Path) -> list[object]:
    return list(read_manifest(folder).shards)
