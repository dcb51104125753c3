"""Models of the Hub: fetched once, pinned to a commit, and compared with the Hub's hashes."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.checkpoints.folder import save_model
from model.generate import load_generator
from tests.servers.forked import run_forked
from tests.servers.hub_server import Fault, HubServer, wait_little
from tests.tiny import TOKENIZER_JSON, make_model

REPO = "owner/tiny"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model with its weights in several files, and what lies beside a model on the Hub."""
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, make_model(), TOKENIZER_JSON, max_file_bytes=200_000)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    others = {"README.md": b"# Tiny", "run.py": b"raise SystemExit", "pytorch_model.bin": b"no"}
    return content | others | {"onnx/model.onnx": b"large", "consolidated.safetensors": b"large"}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[HubServer]:
    with HubServer() as server:
        server.commit(f"models/{REPO}", files)
        yield server


def sample(hub: HubServer, home: Path, place: str) -> subprocess.CompletedProcess[str]:
    words = ["velocity", "sample", "--ckpt", place, "--prompt", "one", "--seed", "1"]
    environment = hub.environment(home) | {"HF_TOKEN": "", "OMP_NUM_THREADS": "1"}
    return run_forked([*words, "--device", "cpu"], None, environment, wait_little)


def fetched(hub: HubServer) -> list[str]:
    """The names of the files whose content was asked for."""
    paths = [request.path for request in hub.requests if request.method == "GET"]
    return sorted(path.rpartition("/")[2] for path in paths if "/resolve/" in path)


def test_a_model_is_fetched_once_and_pinned(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    first = hub.repos[f"models/{REPO}"].branches["main"]
    done = sample(hub, tmp_path, f"hf://{REPO}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("one")
    assert f"hf://{REPO}@{first}: in {tmp_path}" in done.stderr
    read = [name for name in files if name.startswith("model") or name.endswith(".json")]
    assert fetched(hub) == sorted(read)
    hub.commit(f"models/{REPO}", files | {"config.json": b"{}"})
    hub.requests.clear()
    again = sample(hub, tmp_path, f"hf://{REPO}@{first}")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert fetched(hub) == []
    newest = sample(hub, tmp_path, f"hf://{REPO}@main")
    assert newest.returncode == 1
    assert "config.json: 7 differences, the first: model_type is missing" in newest.stderr


def write_from_python() -> None:
    wait_little()
    print(load_generator(f"hf://{REPO}", "cpu").generate("one", seed=1, max_new_tokens=3)[0])


def test_python_and_the_other_commands_take_a_model_of_the_hub(
    hub: HubServer, tmp_path: Path
) -> None:
    environment = hub.environment(tmp_path) | {"HF_TOKEN": "", "OMP_NUM_THREADS": "1"}
    done = run_forked(["velocity", "--help"], None, environment, write_from_python)
    assert (done.returncode, done.stdout[:3]) == (0, "one"), done.stderr
    inspect = ["velocity", "inspect", f"hf://{REPO}", "--json"]
    done = run_forked(inspect, None, environment, wait_little)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kind"] == "model folder from elsewhere"
    assert report["facts"]["weights"].startswith("3 files")
    convert = ["velocity", "convert", f"hf://{REPO}", tmp_path / "new"]
    done = run_forked(convert, None, environment, wait_little)
    assert "models from elsewhere need no conversion" in done.stderr  # It has been looked at.
    publish = ["velocity", "publish", "--ckpt", f"hf://{REPO}", "--repo", "a/b", "--license", "mit"]
    done = run_forked(publish, None, environment, wait_little)
    assert f"hf://{REPO}: is a URL, and --ckpt takes a path on this machine" in done.stderr


def test_bytes_that_are_not_the_hub_s_are_never_read(hub: HubServer, tmp_path: Path) -> None:
    """Neither when they come so, nor when they are so in the cache."""
    hub.fail("/model-00001", Fault(flip_byte=5000), times=1, method="GET")
    done = sample(hub, tmp_path, f"hf://{REPO}")
    assert done.returncode == 0, done.stderr
    [path] = tmp_path.rglob("snapshots/*/model-00001*")
    whole = path.read_bytes()
    os.chmod(path.resolve(), 0o644)
    path.resolve().write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    hub.requests.clear()
    again = sample(hub, tmp_path, f"hf://{REPO}")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert fetched(hub) == [path.name]
    path.resolve().write_bytes(b"short")
    hub.fail("/model-00001", Fault(flip_byte=5000), times=99, method="GET")
    refused = sample(hub, tmp_path, f"hf://{REPO}")
    assert refused.returncode == 1
    last = refused.stderr.splitlines()[-1]
    assert f"{REPO}: {path.name}: came with sha256" in last
    assert "run the same command again, or name a local folder" in last


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("hf://owner/none", "owner/none: no such model at http"),
        (f"hf://{REPO}@v9", f"{REPO}: no revision 'v9'; see http"),
        (
            "hf://owner/data",
            "owner/data: has no model that could be read; expected config.json and",
        ),
        ("hf://owner", "hf://owner: expected hf://user/name or hf://user/name@revision"),
        ("hf://owner/../x", "expected hf://user/name or hf://user/name@revision"),
        ("hf://owner/gated", "owner/gated: is gated; accept its terms at http"),
    ],
)
def test_what_is_no_model_of_the_hub_is_one_line(
    hub: HubServer, tmp_path: Path, place: str, message: str
) -> None:
    hub.commit("models/owner/data", {"config.json": b"{}", "README.md": b""})
    hub.commit("models/owner/gated", {"config.json": b"{}"}, gated=True)
    done = sample(hub, tmp_path, place)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
