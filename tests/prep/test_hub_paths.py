"""Files of the Hub by their paths, and datasets of several configs, as allenai/c4 is one."""

import gzip
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from prep.planning.plan import read_plan
from prep.remote.hf_paths import parse_url
from prep.remote.retry import SourceError
from shards.disk.layout import plan_path
from shards.format import read_manifest
from tests.servers.forked import Forked, run_forked
from tests.servers.hub_server import Fault, HubServer, wait_little
from tests.texts import make_texts, read_texts, set_bytes, write_jsonl

REPO = "allenai/c4"
CARD = b"""---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: en/c4-validation.*.json.gz
- config_name: realnewslike
  data_files:
  - split: train
    path: realnewslike/c4-train.*.json.gz
  - split: validation
    path: realnewslike/c4-validation.*.json.gz
- config_name: both
  data_files:
  - split: train
    path:
    - en/c4-train.*.json.gz
    - realnewslike/c4-train.*.json.gz
---
"""
EN = [f"en/c4-train.{n:05d}-of-00003.json.gz" for n in range(3)]
NEWS = [f"realnewslike/c4-train.{n:05d}-of-00002.json.gz" for n in range(2)]
OTHERS = ["en/c4-validation.00000-of-00001.json.gz", "multilingual/c4-de.tfrecord-0.json.gz"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("files")
    files = {"README.md": CARD}
    for number, name in enumerate([*EN, *NEWS, *OTHERS]):
        path = write_jsonl(folder / "x", [*make_texts(30, seed=number)])
        files[name] = gzip.compress(path.read_bytes())
    return files


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[HubServer]:
    with HubServer(page_size=3) as server:
        server.commit(REPO, files)
        yield server


OPTIONS = ["--unit-bytes", "100", "--workers", "1", "--validation-fraction", "0.2"]


def run_prep(hub: HubServer, folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    command = ["velocity", "prep", "--out", "shards", *OPTIONS, *map(str, words)]
    return run_forked(command, folder, hub.environment(folder / "home"), wait_little)


def list_names(folder: Path) -> list[str]:
    files = read_manifest(folder / "shards").content["sources"]["files"]
    return [file["name"] for file in files]


def fail_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--dataset-config", "en"], EN),
        (["--dataset-config", "realnewslike", "--dataset-config", "en"], NEWS + EN),
        (["--dataset-config", "en", "--dataset-config", "both"], EN + NEWS),
        (["--data-files", "en/c4-train.*.json.gz"], EN),
        (["--data-files", EN[2], "--data-files", "en/c4-train.*"], [EN[2], *EN[:2]]),
        (["--data-files", "*/c4-train.*"], EN + NEWS),
        (["--data-files", "realnewslike"], NEWS),
    ],
)
def test_json_lines_of_the_hub_by_config_or_by_pattern(
    hub: HubServer, tmp_path: Path, words: list[str], names: list[str]
) -> None:
    done = run_prep(hub, tmp_path / "a", "--dataset", REPO, *words)
    assert done.returncode == 0, done.stderr
    assert list_names(tmp_path / "a") == names
    every = [*EN, *NEWS, *OTHERS]
    wanted = {text for name in names for text in make_texts(30, seed=every.index(name))}
    assert set(read_texts(tmp_path / "a/shards").values()) == wanted
    hub_content = read_manifest(tmp_path / "a/shards").content["sources"]["hub"]
    assert hub_content["config"] == (words[1] if "--dataset-config" in words else None)
    configs = words[3::2] if "--dataset-config" in words else []
    assert hub_content.get("more_configs", []) == configs
    assert hub_content.get("data_files", []) == (words[1::2] if "--data-files" in words else [])
    again = run_prep(hub, tmp_path / "a", "--dataset", REPO, *words)
    assert "this set is finished already" in again.stderr
    read_plan(plan_path(tmp_path / "a/shards"))


def test_a_dataset_that_is_a_script_is_read_by_its_files(
    hub: HubServer, tmp_path: Path, files: dict[str, bytes]
) -> None:
    hub.commit(REPO, files | {"c4.py": b"raise ValueError"})
    line = fail_line(run_prep(hub, tmp_path, "--dataset", REPO, "--dataset-config", "en"))
    assert "c4.py); --data-files takes files of the repository whatever its configs are" in line
    done = run_prep(hub, tmp_path, "--dataset", REPO, "--data-files", "en/c4-train.*")
    assert (done.returncode, list_names(tmp_path)) == (0, EN)


def test_a_pattern_lists_only_what_it_may_match(hub: HubServer, tmp_path: Path) -> None:
    assert run_prep(hub, tmp_path, "--dataset", REPO, "--data-files", "en/c4-t*").returncode == 0
    listed = {r.path.partition("?")[0] for r in hub.requests if "/tree/" in r.path}
    assert {path.rpartition("/")[2] for path in listed} == {"en"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data-files", "fr/*"], "allenai/c4: fr/*: no file ending in .parquet"),
        (["--data-files", "fr.json.gz"], "allenai/c4: fr.json.gz: there is no such file or folder"),
        (["--data-files", "README.md"], "allenai/c4: README.md: expected a file ending in"),
        (["--data-files", "a", "--dataset-config", "en"], "--data-files names the files itself"),
        (["--data-files", "a", "--split", "test"], "--data-files names the files itself"),
        (["--data-files", ""], "--data-files is empty"),
        (["--dataset-config", "en", "--dataset-config", "fr"], "allenai/c4: no config 'fr'; name"),
    ],
)
def test_what_is_not_there_is_one_line(
    hub: HubServer, tmp_path: Path, words: list[str], message: str
) -> None:
    assert message in fail_line(run_prep(hub, tmp_path, "--dataset", REPO, *words))


def test_an_hf_url_is_pinned_to_its_commit(
    hub: HubServer, tmp_path: Path, files: dict[str, bytes]
) -> None:
    commit = hub.repos[REPO].branches["main"]
    url = f"hf://datasets/{REPO}/en/c4-train.*"
    hub.fail(EN[0], Fault(503), method="GET")
    hub.fail(EN[1], Fault(flip_byte=1000), method="GET")
    done = run_prep(
        hub, tmp_path / "a", "--input", url, "--input", f"hf://datasets/{REPO}/{NEWS[0]}"
    )
    assert done.returncode == 0, done.stderr
    # All URLs of a repository mean one commit, though its branch may move between two requests.
    assert sum(r.path.partition("?")[0] == f"/api/datasets/{REPO}" for r in hub.requests) == 1
    start = f"hf://datasets/{REPO}@{commit}"
    assert list_names(tmp_path / "a") == [f"{start}/{name}" for name in [*EN, NEWS[0]]]
    # The branch moves on; the commit may be named.
    hub.commit(REPO, {"README.md": CARD, EN[0]: files[EN[1]]})
    words = ["--input", f"hf://datasets/{REPO}@{commit}/en/c4-train.*"]
    done = run_prep(
        hub, tmp_path / "b", *words, "--input", f"hf://datasets/{REPO}@{commit}/{NEWS[0]}"
    )
    assert done.returncode == 0, done.stderr
    assert set_bytes(tmp_path / "a/shards") == set_bytes(tmp_path / "b/shards")
    ids = [read_manifest(tmp_path / name / "shards").dataset_id for name in "ab"]
    assert ids[0] == ids[1]


def test_killed_it_goes_on_at_the_commit_that_was_pinned(
    hub: HubServer, tmp_path: Path, files: dict[str, bytes]
) -> None:
    words = ["--input", f"hf://datasets/{REPO}/en/c4-train.*"]
    assert run_prep(hub, tmp_path / "whole", *words).returncode == 0
    hub.fail(EN[1], Fault(stall_after=500), method="GET")
    folder = tmp_path / "killed"
    folder.mkdir()
    patient = hub.environment(folder / "home") | {"HF_HUB_DOWNLOAD_TIMEOUT": "60"}
    process = Forked(["velocity", "prep", "--out", "shards", *OPTIONS, *words], folder, patient)
    process.kill_after(folder / "shards/.prep/units/00000.json")
    hub.commit(REPO, {EN[0]: files[EN[1]]})
    hub.requests.clear()
    done = run_prep(hub, folder, *words)
    assert done.returncode == 0, done.stderr
    assert not [r.path for r in hub.requests if EN[0] in r.path or "/tree/" in r.path]
    assert set_bytes(folder / "shards") == set_bytes(tmp_path / "whole/shards")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"hf://datasets/{REPO}@v9/en", "allenai/c4: no revision 'v9'; see"),
        ("hf://datasets/no/where/en", "no/where: no such dataset at"),
        (f"hf://datasets/{REPO}/fr/*", f"hf://datasets/{REPO}/fr/*: no file ending in"),
        (f"hf://datasets/{REPO}/fr.txt", "there is no such file or folder; check the URL"),
        (f"hf://{REPO}/en", "is not the place of a dataset's files; expected hf://datasets/owner"),
        ("hf://datasets/secret/web", "secret/web: is gated; accept its terms at"),
    ],
)
def test_a_url_that_leads_nowhere_is_one_line(
    hub: HubServer, tmp_path: Path, url: str, message: str
) -> None:
    hub.commit("secret/web", {"a.jsonl": b"{}"}, gated=True)
    assert message in fail_line(run_prep(hub, tmp_path, "--input", url))


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", "a%2Fb", "0" * 40])
def test_revisions_in_urls(revision: str) -> None:
    found = parse_url(f"hf://datasets/a/b@{revision}/c/*.txt")
    assert found == ("a/b", revision.replace("%2F", "/"), "c/*.txt")
    for url in ("hf://datasets/a", "hf://models/a/b/c.txt", "hf://datasets/a/b?x=1"):
        with pytest.raises(SourceError, match="is not the place of a dataset's files"):
            parse_url(url)
