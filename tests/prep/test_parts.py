"""`--part i/n` and `--finish`: processes that share a folder, killed or not, make the same set."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import SoftFileLock
from typer.testing import CliRunner

from cli import app
from prep.gather import finish_parts
from prep.planning import settle
from prep.planning.plan import plan_inputs, restore_plan
from prep.policy import Policy
from prep.request import Request
from prep.run_part import prepare_part
from prep.tokenizer.identity import identify_gpt2
from prep.units.workspace import hold_part, hold_whole
from shards.disk.lock import acquire, hold, soft_path
from shards.disk.part import Part, parse_part
from shards.format import Manifest, read_manifest
from tests.prep.test_hub_prep import NAMES, hub, run_prep
from tests.servers.forked import Forked
from tests.servers.held import hold_after
from tests.servers.hub_server import HubServer
from tests.texts import (
    make_texts,
    prepare_quietly,
    set_bytes,
    write_jsonl,
    write_sources,
)
from tests.waiting import wait_until

# A fixture of its own file.
__all__ = ["hub"]
OPTIONS = {"unit_bytes": 6000, "validation_fraction": "0.2", "shard_tokens": 5000}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("source"), 600)


@pytest.fixture(scope="module")
def reference(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set that one process makes."""
    out = tmp_path_factory.mktemp("reference") / "shards"
    prepare_quietly(out, source, **OPTIONS)
    return out


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process a lock that is held stays held."""
    monkeypatch.setattr("shards.disk.lock.PROBE_SECONDS", 0.05)


def run_part(out: Path, source: Path, part: str, **options: object) -> list[str]:
    """A part, in this process; what it said."""
    said: list[str] = []
    policy = Policy(**{**OPTIONS, **options})  # type: ignore[arg-type]
    request = Request(out, policy=policy, inputs=(str(source),), task=parse_part(part), workers=1)
    prepare_part(request, said.append)
    return said


def finish(out: Path) -> Manifest:
    return finish_parts(Request(out, task="finish", workers=2), lambda line: None)


def assert_same_set(out: Path, reference: Path) -> None:
    assert read_manifest(out).dataset_id == read_manifest(reference).dataset_id
    assert read_manifest(out).audit == read_manifest(reference).audit
    assert set_bytes(out) == set_bytes(reference)


def start(out: Path, source: Path, part: str, setup: Callable[[], None] | None = None) -> Forked:
    command = ["velocity", "prep", "--out", str(out), "--input", str(source)]
    for name, value in OPTIONS.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    command += ["--part", part, "--workers", "1"]
    return Forked(command, setup=setup)


def count_units(out: Path, part: Part) -> int:
    receipts = (out / ".prep/units").glob("*.json")
    return sum(int(path.stem) % part.count == part.number for path in receipts)


def test_parts_at_once_some_killed_make_the_set_of_one_process(
    source: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    killed_after = {1: 2, 2: 1}
    processes = [start(out, source, "0/3")]
    for number, num_done in killed_after.items():
        setup = hold_after("prep.engines.local", "process_unit", num_done)
        processes.append(start(out, source, f"{number}/3", setup))
    for number, num_done in killed_after.items():
        wait_until(lambda n=number, m=num_done: count_units(out, Part(n, 3)) >= m)
        os.killpg(processes[number].pid, signal.SIGKILL)
    _, errors = processes[0].communicate()
    assert processes[0].returncode == 0, errors
    assert "part 0/3 is done; when all parts 0 to 2 are, run: velocity prep --out" in errors
    for process in processes[1:]:
        process.communicate()
        assert process.returncode == -signal.SIGKILL

    with pytest.raises(ValueError, match=r"units are not done .* of the 3 parts, run again 1-2 "):
        finish(out)
    assert not (out / "manifest.json").exists()
    again = [start(out, source, part) for part in ("1/3", "2/3")]
    for process in again:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    finish(out)
    assert_same_set(out, reference)
    assert list((out / ".prep/tmp").iterdir()) == []


@pytest.mark.parametrize("variable", ["SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"])
def test_the_lines_of_the_docs_make_the_set(
    source: Path, reference: Path, tmp_path: Path, variable: str
) -> None:
    """The lines for Slurm and Kubernetes, for 3 parts at once, with this test's data."""
    page = (Path(__file__).parents[2] / "docs/clusters.md").read_text()
    [line] = re.findall(rf"velocity prep .*{variable}.*", page)
    options = [f"--{name.replace('_', '-')} {value}" for name, value in OPTIONS.items()]
    line = line.replace("/shared/shards", f"shards --input {source} {' '.join(options)}")
    line = line.replace("/64", "/3").replace("--workers 16", "--workers 1")
    [last] = re.findall(r'--wrap "(.*)"', page)
    environment = {**os.environ, "SLURM_CPUS_PER_TASK": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

    def run(line: str, part: int) -> subprocess.Popen[bytes]:
        variables = {**environment, variable: str(part)}
        return subprocess.Popen(["bash", "-c", line], cwd=tmp_path, env=variables)

    processes = [run(line, part) for part in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert run(last.replace("/shared/shards", "shards"), 0).wait() == 0
    assert_same_set(tmp_path / "shards", reference)


def test_parts_one_after_the_other_and_the_whole_for_the_rest(
    source: Path, reference: Path, tmp_path: Path
) -> None:
    """Another count, and no parts at all, go on with what is there."""
    out = tmp_path / "shards"
    run_part(out, source, "1/3")
    said = run_part(out, source, "0/2")
    [line] = [line for line in said if line.startswith("part 0/2: ")]
    assert int(re.findall(r"\d+", line)[-1]) > 0  # Units 4, 10, ... were done by part 1/3.
    done = {path: path.stat().st_mtime_ns for path in out.glob("*.bin")}
    prepare_quietly(out, source, **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert_same_set(out, reference)


@pytest.fixture
def three_parts(source: Path, tmp_path: Path) -> Path:
    """A folder in which all three parts are done."""
    for number in range(3):
        run_part(tmp_path / "shards", source, f"{number}/3")
    return tmp_path / "shards"


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(".bin", "flip"), (".bin", "cut"), (".bin", "gone"), (".docs.parquet", "flip")],
)
def test_finish_notices_what_is_damaged_and_its_part_mends_it(
    three_parts: Path, source: Path, reference: Path, suffix: str, damage: str
) -> None:
    path = three_parts / f"train-00004{suffix}"
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-2])
    with pytest.raises(ValueError, match=r"of the 3 parts, run again 1 \(sbatch") as error:
        finish(three_parts)
    assert path.name in str(error.value) or "units are not done (4)" in str(error.value)
    assert not (three_parts / "manifest.json").exists()
    run_part(three_parts, source, "1/3")
    finish(three_parts)
    assert_same_set(three_parts, reference)


def test_finish_needs_no_sources_and_is_done_once(three_parts: Path, source: Path) -> None:
    first = finish(three_parts)
    said: list[str] = []
    assert finish_parts(Request(three_parts, task="finish"), said.append) == first
    assert "finished already" in said[-1]
    assert "finished already" in run_part(three_parts, source, "0/3")[-1]


def test_finish_does_not_make_the_first_version_again(three_parts: Path) -> None:
    """Where a later version's manifest was lost, what was removed would return."""
    finish(three_parts)
    (three_parts / "versions").mkdir()
    (three_parts / "manifest.json").rename(three_parts / "versions/0123456789ab.json")
    with pytest.raises(ValueError, match=r"has several versions but no manifest.json; copy the"):
        finish(three_parts)
    assert not (three_parts / "manifest.json").exists()


@pytest.mark.parametrize(
    "option",
    ["--input=a.parquet", "--dedup=exact", "--max-documents=5", "--min-chars=3", "--dataset=a/b"],
)
def test_finish_takes_no_options_of_the_parts(tmp_path: Path, option: str) -> None:
    arguments = ["prep", "--out", str(tmp_path), "--finish", "--workers", "2", option]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, ValueError)
    expected = f"{option.split('=')[0]}: --finish uses the sources and options that the parts"
    assert str(error).startswith(expected)


def test_finish_without_parts_says_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no plan here, so no part was started; start with"):
        finish(tmp_path)


def test_finish_refuses_a_damaged_plan(three_parts: Path) -> None:
    path = three_parts / ".prep/plan.json"
    plan = json.loads(path.read_text())
    plan["content"]["policy"]["validation_fraction"] = "0.3"
    path.write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=r"plan.json: is damaged, or from another version"):
        finish(three_parts)


def test_copies_are_dropped_by_finish(source: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(twice / name, [*make_texts(200)])
    whole = tmp_path / "whole"
    prepare_quietly(whole, twice, **OPTIONS, dedup="exact")
    for number in range(2):
        run_part(tmp_path / "parts", twice, f"{number}/2", dedup="exact")
    finish(tmp_path / "parts")
    assert read_manifest(whole).audit["dropped"]["duplicate"] >= 200
    assert_same_set(tmp_path / "parts", whole)


def test_a_start_clears_only_what_its_own_part_left(source: Path, tmp_path: Path) -> None:
    left = tmp_path / "shards/.prep/tmp"
    for unit in (3, 4):
        (left / f"{unit:05d}-abcdef").mkdir(parents=True)
    run_part(tmp_path / "shards", source, "0/3")
    assert [path.name for path in left.iterdir()] == ["00004-abcdef"]


def test_two_processes_of_one_part_are_refused_and_a_dead_one_is_not_waited_for(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    process = start(out, source, "1/3")
    lock = out / ".prep/parts/1-of-3.lock"
    wait_until(lambda: count_units(out, Part(1, 3)))
    os.kill(process.pid, signal.SIGSTOP)
    found = rf"another process is working on part 1/3 \(.*process {process.pid}, since "
    with pytest.raises(ValueError, match=found):
        run_part(out, source, "1/3")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert lock.exists()
    run_part(out, source, "1/3")


def test_the_whole_and_parts_keep_each_other_out(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    with hold_part(out, Part(0, 2)):
        with hold_part(out, Part(1, 2)):
            pass
        with pytest.raises(ValueError, match=r"part 0/2 is running there \("):
            prepare_quietly(out, source, **OPTIONS)
        with pytest.raises(ValueError, match=r"part 0/2 is running there \("):
            run_part(out, source, "1/3")
        (out / ".prep/plan.json").write_text("{}")
        with pytest.raises(ValueError, match=r"part 0/2 is running there \("):
            finish(out)
    with (
        hold_whole(out),
        pytest.raises(ValueError, match=r"a velocity prep without --part is running there \("),
    ):
        run_part(out, source, "0/2")


def test_where_the_file_system_has_no_locks_a_file_is_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock of a dead process of this machine is taken over; of another one it is named."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    path = tmp_path / "lock"
    with hold(tmp_path, path, "somebody is there"):
        assert isinstance(acquire(path, 0), SoftFileLock)
        with (
            pytest.raises(ValueError, match=rf"is there .*; if it is gone, remove {path}.soft$"),
            hold(tmp_path, path, "somebody is there", seconds=0),
        ):
            pass
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    soft_path(path).write_text(f"{dead.pid}\n{os.uname().nodename}\n")
    with hold(tmp_path, path, "somebody is there", seconds=10):
        pass


def test_parts_that_begin_at_once_have_one_plan_even_without_locks(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between this part's look and its write another part writes its plan."""
    made: list[object] = []
    make_plan = settle.make_plan

    def make_slowly(request: Request, *arguments: object) -> object:
        plan = make_plan(request, *arguments)  # type: ignore[arg-type]
        if not made:
            made.append(plan)
            other = Request(
                request.out,
                policy=request.policy,
                inputs=request.inputs,
                task=Part(1, 2),
                workers=1,
            )
            settle.settle_plan(other, lambda line: None)
            made.append((request.out / ".prep/plan.json").stat())
        return plan

    monkeypatch.setattr(settle, "make_plan", make_slowly)
    run_part(tmp_path / "shards", source, "0/2")
    assert (tmp_path / "shards/.prep/plan.json").stat().st_ino == made[1].st_ino  # type: ignore[attr-defined]


def test_a_part_with_other_options_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    run_part(out, source, "0/2")
    with pytest.raises(ValueError, match=r"shard_tokens was 5000, is now 7000; run the command"):
        run_part(out, source, "1/2", shard_tokens=7000)
    shutil.rmtree(out / ".prep/units")
    for path in [*out.glob("*.bin"), *out.glob("*.docs.parquet")]:
        path.unlink()
    with pytest.raises(ValueError, match=r"or remove .*plan.json, as nothing was done under it"):
        run_part(out, source, "1/2", shard_tokens=7000)


def test_parts_fetch_their_own_files_of_the_hub(
    hub: HubServer,
    tmp_path: Path,
) -> None:
    """Each file is fetched once, by the part whose unit it is, and removed."""
    whole = run_prep(hub, tmp_path, "--unit-bytes", "100", "--workers", "1")
    assert whole.returncode == 0, whole.stderr
    (tmp_path / "shards").rename(tmp_path / "whole")
    hub.requests.clear()
    for number in (1, 0):
        options = ("--unit-bytes", "100", "--workers", "1", "--part", f"{number}/2")
        process = run_prep(hub, tmp_path, *options)
        assert process.returncode == 0, process.stderr
        fetched = [name for name in NAMES if any(name in r.path for r in hub.requests)]
        assert fetched == (NAMES[1:] if number else NAMES)
    assert list((tmp_path / "shards/.prep/downloads").iterdir()) == []
    finish(tmp_path / "shards")
    assert_same_set(tmp_path / "shards", tmp_path / "whole")


def test_a_plan_comes_back_from_its_file(source: Path) -> None:
    policy = Policy(**OPTIONS, where=("language=en",), sample="0.5")  # type: ignore[arg-type]
    plan = plan_inputs([str(source)], policy, identify_gpt2())
    assert restore_plan(json.loads(json.dumps(plan.content))).plan_id == plan.plan_id


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/2", "1/0", "1/2/3"])
def test_a_part_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"--part is .*; expected i/n with i from 0 to n - 1"):
        parse_part(text)


def test_limits_need_one_process_that_sees_all_units(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--max-tokens counts across all units"):
        run_part(tmp_path, source, "0/2", max_tokens=1000)
    with pytest.raises(ValueError, match=r"--part and --engine ray both divide the work"):
        Request(tmp_path, policy=Policy(), task=Part(0, 2), engine="ray")
