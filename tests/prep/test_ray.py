"""`--engine ray`: the same set as on one machine, though a machine of the cluster dies."""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from prep.engines import ray_cluster
from prep.policy import Policy
from prep.request import Request
from prep.run import prepare
from shards.format import read_manifest
from tests.servers.forked import run_forked
from tests.servers.hub_server import HubServer
from tests.servers.hub_server import Request as HubRequest
from tests.servers.web_server import WebServer
from tests.texts import (
    make_texts,
    prepare_quietly,
    set_bytes,
    write_jsonl,
    write_parquet,
    write_sources,
)

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
OPTIONS = {"unit_bytes": 30_000, "validation_fraction": "0.2", "shard_tokens": 20_000}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("source"), 5000)


@pytest.fixture(scope="module")
def reference(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set that the local engine makes."""
    out = tmp_path_factory.mktemp("reference") / "shards"
    prepare_quietly(out, source, **OPTIONS)
    return out


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, Any]]:
    """Two machines, and the environment in which they let a process in."""
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.servers.ray_nodes"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    yield {**json.loads(process.stdout.readline()), "environment": environment}
    process.communicate("", timeout=300)


def start(out: Path, source: Path, cluster: dict[str, Any], *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cli", "prep", "--out", out.name, "--input", str(source)]
    for name, value in OPTIONS.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    command += ["--engine", "ray", "--ray-address", cluster["address"], *options]
    return subprocess.Popen(
        command,
        cwd=out.parent,
        env={**cluster["environment"], "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


def count_units(out: Path) -> int:
    return len(list((out / ".prep/units").glob("*.json")))


def children(process: int) -> Iterator[int]:
    """A process's children and theirs."""
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, read_process(listed).split()):
            yield child
            yield from children(child)


def read_process(path: Path) -> bytes:
    """A file of a process, empty where it has ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def is_at_work(process: int) -> bool:
    return any(
        b"do_unit" in read_process(Path(f"/proc/{child}/cmdline")) for child in children(process)
    )


@needs_ray
def test_a_set_that_ends_while_units_are_in_work_is_the_same(
    source: Path, tmp_path: Path, cluster: dict[str, Any]
) -> None:
    prepare_quietly(tmp_path / "local", source, **OPTIONS, max_tokens=100_000)
    process = start(
        tmp_path / "shards", source, cluster, "--max-tokens", "100000", "--workers", "5"
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    ids = [read_manifest(tmp_path / name).dataset_id for name in ("local", "shards")]
    assert ids[0] == ids[1]
    assert set_bytes(tmp_path / "shards") == set_bytes(tmp_path / "local")


@needs_ray
def test_a_command_and_a_machine_are_killed_and_the_set_is_the_same(
    source: Path, reference: Path, tmp_path: Path, cluster: dict[str, Any]
) -> None:
    out = tmp_path / "shards"
    process = start(out, source, cluster)
    wait_until(lambda: count_units(out) >= 5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "manifest.json").exists()

    process = start(out, source, cluster)
    before = count_units(out)
    wait_until(lambda: count_units(out) >= before + 3 and is_at_work(cluster["raylet"]), process)
    for victim in [*children(cluster["raylet"]), cluster["raylet"]]:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    at_kill = count_units(out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    manifest = read_manifest(out)
    assert at_kill < len(json.loads((out / ".prep/plan.json").read_text())["content"]["units"])
    assert manifest.dataset_id == read_manifest(reference).dataset_id
    assert set_bytes(out) == set_bytes(reference)
    assert list((out / ".prep/tmp").iterdir()) == []


@needs_ray
def test_files_of_the_hub_arrive_while_others_are_in_work_each_once(tmp_path: Path) -> None:
    names = [f"data/train-{number:05d}.parquet" for number in range(6)]
    paths = [
        write_parquet(tmp_path / f"{number}.parquet", [*make_texts(100, seed=number)])
        for number in range(len(names))
    ]
    asked: set[str] = set()
    others_asked = threading.Event()
    held: list[bool] = []

    def watch(request: HubRequest) -> None:
        """Hold the first file's answer until two others have been asked for."""
        if request.method != "GET" or "/resolve/" not in request.path:
            return
        asked.update(name for name in names if name in request.path)
        if len(asked) >= 3:
            others_asked.set()
        if names[0] in request.path:
            held.append(others_asked.wait(120))

    with HubServer() as hub:
        hub.commit("owner/corpus", {n: p.read_bytes() for n, p in zip(names, paths, strict=True)})
        for out, options in (("local", []), ("shards", ["--engine", "ray"])):
            hub.watch = watch if options else hub.watch
            words = ["velocity", "prep", "--out", tmp_path / out, "--dataset", "owner/corpus"]
            environment = hub.environment(tmp_path / "home")
            environment |= {"HF_HUB_DOWNLOAD_TIMEOUT": "30", "RAY_ADDRESS": ""}
            words += ["--unit-bytes", "100", "--workers", "1", *options]
            process = run_forked(words, environment=environment)
            assert process.returncode == 0, process.stderr
    assert set_bytes(tmp_path / "shards") == set_bytes(tmp_path / "local")
    assert held[0]  # With one file after the other nobody would have asked for others.
    assert list((tmp_path / "shards/.prep/downloads").iterdir()) == []


@needs_ray
def test_files_at_urls_and_here_are_the_set_of_one_machine(source: Path, tmp_path: Path) -> None:
    with WebServer() as web:
        content = (source / "b.jsonl").read_bytes()
        lines = content.splitlines(keepends=True)
        web.files = {f"{n}.jsonl": b"".join(lines[n * 500 : (n + 1) * 500]) for n in range(4)}
        local = write_jsonl(tmp_path / "here.jsonl", [*make_texts(200, seed=5)])
        words = [word for path in web.files for word in ("--input", f"{web.url}/{path}")]
        command = ["velocity", "prep", "--input", str(local), *words, "--unit-bytes", "1000"]
        for name, options in (("one", ()), ("ray", ("--engine", "ray", "--workers", "2"))):
            done = run_forked([*command, "--out", str(tmp_path / name), *options], tmp_path)
            assert done.returncode == 0, done.stderr
        assert [len(web.find(path)) for path in web.files] == [4] * 4  # Listed, fetched; twice.
    assert set_bytes(tmp_path / "ray") == set_bytes(tmp_path / "one")


@needs_ray
def test_a_bad_file_is_the_same_line_as_on_one_machine(
    tmp_path: Path, cluster: dict[str, Any]
) -> None:
    good = write_jsonl(tmp_path / "in.jsonl", [*make_texts(200)])
    with open(good, "a") as file:
        file.write('{"content": oops}\n')
    with pytest.raises(ValueError, match=r"in.jsonl, line 201: ") as error:
        prepare_quietly(tmp_path / "local", good, **OPTIONS)
    process = start(tmp_path / "shards", good, cluster)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == f"velocity: {error.value}"
    assert "Traceback" not in errors


def test_without_the_package_it_says_what_to_install(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'velocitylm\[ray\]'"):
        prepare(
            Request(tmp_path, policy=Policy(), inputs=(str(source),), engine="ray", workers=1),
            lambda line: None,
        )


@needs_ray
def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"127.0.0.1:9: cannot join a Ray cluster there"):
        ray_cluster.connect("127.0.0.1:9")


def test_a_machine_that_cannot_do_the_work_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job: Any = type("Job", (), {"folder": tmp_path})
    (tmp_path / ".prep/tmp").mkdir(parents=True)
    mark = ray_cluster.write_mark(tmp_path)
    ray_cluster.check_machine(job, mark)
    mark.path.unlink()
    with pytest.raises(ValueError, match=r"does not see .*; give --out on a file system that all"):
        ray_cluster.check_machine(job, mark)
    other = ray_cluster.RunMark(mark.path, "0.0.1")
    with pytest.raises(ValueError, match=r"has velocitylm .*, the command has 0.0.1; install the"):
        ray_cluster.check_machine(job, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "spark"}, "--engine is spark; expected local or ray"),
        ({"ray_address": "auto"}, "--ray-address is for --engine ray"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Request(tmp_path, policy=Policy(), **options)  # type: ignore[arg-type]
