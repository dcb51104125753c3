"""Datasets of the Hub, met as a server on this machine: found, pinned, fetched, whatever fails.

The library reads the Hub's address when it is imported, so the calls are made in one worker
process that lives for all tests here.
"""

import gzip
import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prep.remote import hub_requests
from prep.remote.download import download
from prep.remote.hub import resolve
from prep.remote.hub_files import HubDataset, HubFile
from prep.remote.retry import Retry, SourceError, read_wait
from tests.servers.hub_server import STALL_SECONDS, Fault, HubServer, changed_environment

QUICK = Retry(tries=4, first_delay_seconds=0.01)
CARD = b"""---
license: odc-by
dataset_info:
  features:
  - name: content
    dtype: string
  splits:
  - name: train
    num_bytes: 2766953721769
    num_examples: 968000015
---
# A web corpus
"""
CONFIGS_CARD = b"""---
configs:
- config_name: english
  data_files:
  - split: train
    path: en/*.jsonl
  - split: test
    path: en-test.jsonl
- config_name: german
  data_files: de/*.jsonl
---
"""
LINES = b'{"content": "a line of text"}\n' * 100

Call = Callable[..., tuple[Any, list[str]]]


def make_parquet(seed: int, num_rows: int = 200) -> bytes:
    texts = [f"document {row} of file {seed} " * 3 for row in range(num_rows)]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"content": texts}), buffer)
    return buffer.getvalue()


def make_corpus(num_files: int = 2) -> dict[str, bytes]:
    """Files named as RefinedWeb's are, and its card."""
    names = [
        f"data/train-{number:05d}-of-{num_files:05d}-{number:016x}.parquet"
        for number in range(num_files)
    ]
    return {"README.md": CARD} | {name: make_parquet(i) for i, name in enumerate(names)}


def call_quickly(
    function: Callable[..., Any], environment: dict[str, str], *args: Any, **options: Any
) -> tuple[Any, list[str]]:
    """In the worker: what a call returns, and the lines that it reported."""
    lines: list[str] = []
    with changed_environment(environment):
        return function(*args, report=lines.append, retry=QUICK, **options), lines


def resolve_and_listen(repo: str, **options: Any) -> tuple[HubDataset, list[str]]:
    """In the worker: a dataset, and what was said about it."""
    lines: list[str] = []
    return resolve(repo, say=lines.append, **options), lines


def download_together(datasets: list[HubDataset], folder: Path) -> list[tuple[Path, list[str]]]:
    """In the worker: the first file of each, all at the same time."""

    def fetch(dataset: HubDataset) -> tuple[Path, list[str]]:
        lines: list[str] = []
        path = download(dataset.locate(dataset.files[0]), folder, report=lines.append, retry=QUICK)
        return path, lines

    with ThreadPoolExecutor(len(datasets)) as threads:
        return list(threads.map(fetch, datasets))


def limit_silence(seconds: float) -> None:
    """In the worker: give up silent connections early."""
    hub_requests.MAX_SILENCE_SECONDS = seconds


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer(page_size=3) as hub:
        yield hub


@pytest.fixture
def hub(server: HubServer) -> HubServer:
    server.faults.clear()
    server.requests.clear()
    return server


@pytest.fixture(scope="module")
def pool(
    server: HubServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProcessPoolExecutor]:
    environment = server.environment(tmp_path_factory.mktemp("home"))
    with changed_environment(environment):
        pool = ProcessPoolExecutor(1, get_context("spawn"))
        pool.submit(limit_silence, 3.0).result()
    with pool:
        yield pool


@pytest.fixture
def call(pool: ProcessPoolExecutor) -> Call:
    def call(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, list[str]]:
        return pool.submit(call_quickly, function, {}, *args, **options).result()

    return call


@pytest.fixture
def dataset(hub: HubServer, request: pytest.FixtureRequest) -> tuple[HubDataset, bytes]:
    """A dataset of one file, as resolve would give it, and the file's content."""
    repo = f"files/{request.node.name.replace('[', '-').rstrip(']')}"
    content = make_parquet(0)
    commit = hub.commit(repo, {"data/a.parquet": content})
    return describe_dataset(repo, commit, "data/a.parquet", content), content


def describe_dataset(repo: str, commit: str, name: str, content: bytes) -> HubDataset:
    file = HubFile(name, len(content), hashlib.sha256(content).hexdigest())
    return HubDataset(repo, None, "train", None, commit, (file,), None, None)


# Finding a dataset's files


def test_a_dataset_is_its_files_at_a_commit_with_sizes_and_hashes(
    hub: HubServer, call: Call
) -> None:
    files = make_corpus(8)
    commit = hub.commit("tiiuae/falcon-refinedweb", files)
    found, lines = call(resolve, "tiiuae/falcon-refinedweb")
    assert found.revision == commit
    assert (found.num_rows, found.num_text_bytes) == (968000015, 2766953721769)
    assert [file.name for file in found.files] == sorted(files)[1:]
    for file in found.files:
        expected = describe_dataset("", "", file.name, files[file.name]).files[0]
        assert file == expected
    assert lines == []


def test_a_moving_branch_is_pinned(hub: HubServer, call: Call, tmp_path: Path) -> None:
    old = make_corpus(1)
    commit = hub.commit("moving/branch", old)
    found, _ = call(resolve, "moving/branch")
    name = found.files[0].name
    hub.commit("moving/branch", {name: make_parquet(seed=7)})
    path, _ = call(download, found.locate(found.files[0]), tmp_path)
    assert path.read_bytes() == old[name]
    again, _ = call(resolve, "moving/branch", revision=commit)
    assert again == replace(found, requested_revision=commit)
    moved, _ = call(resolve, "moving/branch", revision="main")
    assert moved.revision != commit
    assert moved.files != found.files


def test_configs_and_splits_are_those_of_the_card(hub: HubServer, call: Call) -> None:
    files = {"README.md": CONFIGS_CARD, "en/1.jsonl": LINES, "en/2.jsonl": LINES + LINES}
    hub.commit("many/configs", {**files, "en-test.jsonl": b"{}", "de/1.jsonl": LINES})
    found, _ = call(resolve, "many/configs", configs=("english",))
    assert [file.name for file in found.files] == ["en/1.jsonl", "en/2.jsonl"]
    found, _ = call(resolve, "many/configs", configs=("english",), split="test")
    assert found.files[0].sha256 is None
    assert found.files[0].git_sha1 == "9e26dfeeb6e641a33dae4961196235bdb965b21b"
    with pytest.raises(SourceError, match="has several configs; name one of english, german with"):
        call(resolve, "many/configs")
    with pytest.raises(SourceError, match="no config 'french'; name one of english, german with"):
        call(resolve, "many/configs", configs=("french",))
    with pytest.raises(SourceError, match="no split 'dev'; the splits are train, test; name one"):
        call(resolve, "many/configs", configs=("english",), split="dev")


def test_what_is_not_there_or_cannot_be_read_is_one_line(hub: HubServer, call: Call) -> None:
    hub.commit("there/is", make_corpus())
    hub.commit("only/pages", {"a.xml": b"<a/>", "b.xml": b"<a/>"})
    hub.commit("only/code", {"code.py": b"raise SystemExit", "README.md": b"# Code"})
    hub.commit("no/data", {"README.md": b"# Nothing"})
    cases = {
        "is/not": "is/not: no such dataset at http.*; check the name, or log in",
        "no name": "no name: is not the name of a dataset; expected one such as owner/name",
        "only/pages": r"a.xml \(2 of 2 files\) cannot be read; expected .parquet.* --input",
        "only/code": "only/code: cannot be resolved .*scripts are no longer supported",
        "no/data": "no/data: cannot be resolved .*doesn't contain any data files",
    }
    for repo, message in cases.items():
        with pytest.raises(SourceError, match=message) as caught:
            call(resolve, repo)
        assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match=r"there/is: no revision 'v9'; see http.*commits/main"):
        call(resolve, "there/is", revision="v9")


def test_files_that_no_split_has_are_told(hub: HubServer, call: Call) -> None:
    names = ("LICENSE", ".gitattributes", "table.pdf", "scripts/make.py", "_old/a.jsonl", "b.Md")
    more = dict.fromkeys(names, b"x")
    hub.commit("mixed/corpus", {**make_corpus(), **more, "more.jsonl": LINES})
    [found, lines], _ = call(resolve_and_listen, "mixed/corpus")
    assert len(found.files) == 2
    assert lines == [
        "mixed/corpus: 6 files left out: .jsonl in no split 1, .md 1, .pdf 1, .py 1, hidden 1, "
        "without a suffix 1"
    ]
    files = {"README.md": CONFIGS_CARD, "en/1.jsonl": LINES, "en-test.jsonl": LINES}
    hub.commit("mixed/configs", {**files, "de/1.jsonl": LINES, "en/notes.pdf": b"x"})
    [found, lines], _ = call(resolve_and_listen, "mixed/configs", configs=("english",))
    assert [file.name for file in found.files] == ["en/1.jsonl"]
    assert lines == ["mixed/configs: 1 file left out: .pdf 1"]


def test_json_lines_under_their_other_names_are_read(hub: HubServer, call: Call) -> None:
    names = ["data/c4-train.00000-of-01024.json.gz", "data/c4-train.00001-of-01024.json.gz"]
    hub.commit("c4/like", dict.fromkeys(names, gzip.compress(LINES)))
    found, _ = call(resolve, "c4/like")
    assert [file.name for file in found.files] == names


def test_a_gated_dataset_says_where_to_ask_and_opens_with_a_token(
    hub: HubServer, pool: ProcessPoolExecutor
) -> None:
    hub.commit("gated/corpus", make_corpus(), gated=True)
    message = (
        "is gated; accept its terms at http.*/datasets/gated/corpus, then log in with .hf auth"
    )
    with pytest.raises(SourceError, match=message):
        pool.submit(call_quickly, resolve, {}, "gated/corpus").result()
    token = {"HF_TOKEN": "hf_of_the_test"}
    found, _ = pool.submit(call_quickly, resolve, token, "gated/corpus").result()
    assert len(found.files) == 2


@pytest.mark.parametrize(
    ("fault", "paths"),
    [
        (
            Fault(503),
            ["/api/datasets/", "README.md", ".huggingface.yaml", "/tree/", "/paths-info/"],
        ),
        (Fault(429, (("Retry-After", "0"),)), ["/api/datasets/", "/paths-info/"]),
        (Fault(stall_after=3), ["/api/datasets/", "/tree/", "/paths-info/"]),
    ],
    ids=["503", "429", "stall"],
)
def test_resolving_outlasts_a_fault_in_each_of_its_requests(
    hub: HubServer, call: Call, fault: Fault, paths: list[str], request: pytest.FixtureRequest
) -> None:
    repo = f"faulty/{request.node.callspec.id}"
    hub.commit(repo, {**make_corpus(), ".huggingface.yaml": b"pretty_name: corpus"})
    for path in paths:
        hub.fail(path, fault, method="POST" if path == "/paths-info/" else "GET")
    started = time.monotonic()
    found, lines = call(resolve, repo)
    assert time.monotonic() - started < STALL_SECONDS
    assert len(found.files) == 2
    assert found.num_rows == 968000015
    assert not any(planned.times for planned in hub.faults)
    assert len(lines) >= len(paths)
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize("path", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    ("method", "status", "message"),
    [
        ("GET", 503, "HTTP 503, after 4 tries; check the network and run"),
        ("HEAD", 403, r"the Hub refused \S+ with HTTP 403 \(no reason given\); see http"),
    ],
)
def test_resolving_never_goes_on_without_the_card(
    hub: HubServer, call: Call, path: str, method: str, status: int, message: str
) -> None:
    repo = f"cardless/{method}-{path.strip('.').partition('.')[0]}"
    hub.commit(repo, {**make_corpus(), ".huggingface.yaml": b"pretty_name: corpus"})
    hub.fail(path, Fault(status), times=1000, method=method)
    with pytest.raises(SourceError, match=f"{repo}: {message}"):
        call(resolve, repo)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HF_ENDPOINT", "http://127.0.0.1:1", "refused, after 4 tries; check the network and run"),
        ("HF_HUB_OFFLINE", "1", "cannot be asked while HF_HUB_OFFLINE is set; unset it, or"),
    ],
)
def test_no_way_to_the_hub_is_one_line(
    hub: HubServer, tmp_path: Path, variable: str, value: str, message: str
) -> None:
    with (
        changed_environment({**hub.environment(tmp_path), variable: value}),
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        pytest.raises(SourceError, match=message),
    ):
        pool.submit(call_quickly, resolve, {}, "some/data").result()


# Fetching a file


def test_a_download_outlasts_faults(
    hub: HubServer, pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    faults = {
        "500": Fault(500),
        "503": Fault(503),
        "408": Fault(408),
        "429": Fault(429),
        "retry-after": Fault(429, (("Retry-After", "0"),)),
        "cut": Fault(cut_after=1000),
        "stall": Fault(stall_after=1000),
        "wrong-bytes": Fault(flip_byte=1500),
        "before": Fault(503),
    }
    content = make_parquet(0)
    datasets = []
    for kind, fault in faults.items():
        name = f"data/{kind}.parquet"
        commit = hub.commit(f"fault/{kind}", {name: content})
        datasets.append(describe_dataset(f"fault/{kind}", commit, name, content))
        hub.fail(name, fault, method="HEAD" if kind == "before" else "GET")
    for path, lines in pool.submit(download_together, datasets, tmp_path).result():
        assert path.read_bytes() == content
        assert path.parent == tmp_path
        assert lines or "before" in path.name
    assert len(list(tmp_path.iterdir())) == len(faults)
    assert not any(planned.times for planned in hub.faults)


def test_wrong_bytes_are_never_kept(
    hub: HubServer, call: Call, tmp_path: Path, dataset: tuple[HubDataset, bytes]
) -> None:
    found, _ = dataset
    hub.fail("a.parquet", Fault(flip_byte=99), method="GET", times=1000)
    with pytest.raises(
        SourceError, match=r"a.parquet: came with sha256 \w+, the Hub has \w+, after 4"
    ):
        call(download, found.locate(found.files[0]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_small_file_is_checked_by_its_git_id(hub: HubServer, call: Call, tmp_path: Path) -> None:
    hub.commit("small/file", {"train.jsonl": b'{"content": "short"}\n'})
    found, _ = call(resolve, "small/file")
    assert found.files[0].sha256 is None
    hub.fail("train.jsonl", Fault(flip_byte=15), method="GET")
    path, lines = call(download, found.locate(found.files[0]), tmp_path)
    assert path.read_bytes() == b'{"content": "short"}\n'
    assert "came with sha1" in lines[0]


def test_a_file_that_vanished_is_one_line(
    hub: HubServer, call: Call, tmp_path: Path, dataset: tuple[HubDataset, bytes]
) -> None:
    found, _ = dataset
    gone = replace(found.files[0], name="data/gone.parquet")
    with pytest.raises(
        SourceError, match=r"data/gone.parquet is gone from commit .* start over with another --out"
    ):
        call(download, found.locate(gone), tmp_path)
    rewritten = replace(found, revision="0" * 40)
    with pytest.raises(SourceError, match=f"no revision '{'0' * 40}'"):
        call(download, rewritten.locate(found.files[0]), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("status", [404, 410])
def test_a_file_that_a_mirror_lacks_is_named(
    hub: HubServer,
    call: Call,
    tmp_path: Path,
    dataset: tuple[HubDataset, bytes],
    method: str,
    status: int,
) -> None:
    found, _ = dataset
    hub.fail("data/a.parquet", Fault(status), times=1000, method=method)
    with pytest.raises(
        SourceError,
        match=rf"{found.repo}: data/a.parquet is not at http://\S+ \(HTTP {status}\); commit "
        f"{found.revision} no longer has it, or this mirror lacks it: .* HF_ENDPOINT",
    ):
        call(download, found.locate(found.files[0]), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [401, 403, 451])
def test_a_file_that_is_refused_is_named(
    hub: HubServer, call: Call, tmp_path: Path, dataset: tuple[HubDataset, bytes], status: int
) -> None:
    found, _ = dataset
    hub.fail("data/a.parquet", Fault(status), times=1000, method="GET")
    with pytest.raises(SourceError, match=f"the Hub refused data/a.parquet with HTTP {status}"):
        call(download, found.locate(found.files[0]), tmp_path)


def test_a_finished_file_is_not_fetched_again_and_a_damaged_one_is(
    hub: HubServer, call: Call, tmp_path: Path, dataset: tuple[HubDataset, bytes]
) -> None:
    found, content = dataset
    path, _ = call(download, found.locate(found.files[0]), tmp_path)
    hub.requests.clear()
    assert call(download, found.locate(found.files[0]), tmp_path) == (path, [])
    assert hub.requests == []
    path.write_bytes(content[:-1] + b"?")
    call(download, found.locate(found.files[0]), tmp_path)
    assert path.read_bytes() == content
    path.write_bytes(content[:50])
    call(download, found.locate(found.files[0]), tmp_path)
    assert path.read_bytes() == content


def test_a_name_from_the_hub_does_not_leave_the_folder(
    hub: HubServer, call: Call, tmp_path: Path, dataset: tuple[HubDataset, bytes]
) -> None:
    found, content = dataset
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    for name in ("../../out.parquet", "/etc/out.parquet", "data/../../../out.parquet"):
        hub.commit(found.repo, {name: content, "data/a.parquet": content})
        commit = hub.repos[found.repo].branches["main"]
        outside = describe_dataset(found.repo, commit, name, content)
        with pytest.raises((ValueError, OSError)):
            call(download, outside.locate(outside.files[0]), folder)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_killed_download_leaves_no_file_and_the_next_one_cleans_up(
    hub: HubServer, call: Call, tmp_path: Path, dataset: tuple[HubDataset, bytes]
) -> None:
    found, content = dataset
    hub.fail("a.parquet", Fault(stall_after=2000), method="GET")
    program = (
        "from pathlib import Path;"
        "from prep.remote.hub_files import HubDataset, HubFile;"
        "from prep.remote.download import download;"
        f"dataset = {found!r}; download(dataset.locate(dataset.files[0]), Path({str(tmp_path)!r}))"
    )
    environment = {**os.environ, **hub.environment(tmp_path / "home"), "PYTHONPATH": os.getcwd()}
    environment["HF_HUB_DOWNLOAD_TIMEOUT"] = "60"
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob(".*.part/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(tmp_path.glob(".*.part"))) == 1
    assert not list(tmp_path.glob("*.parquet"))
    path, _ = call(download, found.locate(found.files[0]), tmp_path)
    assert path.read_bytes() == content
    assert not list(tmp_path.glob(".*.part"))


def test_a_process_of_its_own_prints_nothing_but_one_line_a_retry(
    hub: HubServer, tmp_path: Path
) -> None:
    hub.commit("quiet/corpus", make_corpus(20))
    hub.fail("/tree/", Fault(503), method="GET")
    program = (
        "from pathlib import Path;"
        "from prep.remote.hub import resolve; from prep.remote.download import download;"
        "dataset = resolve('quiet/corpus');"
        f"print(download(dataset.locate(dataset.files[0]), Path({str(tmp_path)!r})).exists())"
    )
    environment = {**os.environ, **hub.environment(tmp_path), "PYTHONPATH": os.getcwd()}
    # A folder of the same name in the current one is not what was asked for.
    (tmp_path / "quiet" / "corpus").mkdir(parents=True)
    (tmp_path / "quiet" / "corpus" / "train.txt").write_text("local")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.stdout == "True\n"
    assert done.returncode == 0
    assert done.stderr
    assert all(line.startswith("velocity: ") for line in done.stderr.splitlines())


def test_waits_that_the_server_asks_for() -> None:
    later = datetime.now(UTC) + timedelta(seconds=90)
    assert read_wait({"Retry-After": "55"}) == 55
    assert read_wait({"Retry-After": format_datetime(later, usegmt=True)}) == pytest.approx(
        90, abs=3
    )
    assert read_wait({"RateLimit": '"api";r=0;t=120'}) == 120
    assert read_wait({"RateLimit": '"api";r=99;t=120'}) == 0
    assert read_wait({"Retry-After": "soon"}) == 0
    assert read_wait({}) == 0


def test_waits_double_up_to_a_limit() -> None:
    retry = Retry(first_delay_seconds=1, max_delay_seconds=10)
    caps = [1, 2, 4, 8, 10, 10]
    for attempt, cap in enumerate(caps, start=1):
        delays = [retry.choose_delay(attempt) for _ in range(50)]
        assert cap / 2 <= min(delays) < max(delays) <= cap
