"""What can go wrong under `velocity prep`, and what is then said and kept: docs/faults.md."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.killed import hash_files
from tests.texts import prepare_quietly, write_jsonl

OPTIONS = {"unit_bytes": 9000, "validation_fraction": "0.3"}


def as_arguments(**options: object) -> list[str]:
    """Policy options as they are typed."""
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in options.items())
    return [word for pair in pairs for word in pair]


def make_rare_texts(count: int, seed: int) -> list[str | None]:
    """Texts of many tokens a byte, so that they need more disk than prep expects."""
    generator = random.Random(seed)
    characters = [*map(chr, range(33, 127)), *map(chr, range(0x4E00, 0x4E60))]
    return ["".join(generator.choices(characters, k=150)) for _ in range(count)]


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files, three units; some documents are copies."""
    folder = tmp_path_factory.mktemp("rare")
    texts = make_rare_texts(60, seed=1)
    write_jsonl(folder / "a.jsonl", [*texts, *texts[:5]])
    write_jsonl(folder / "b.jsonl", [*make_rare_texts(60, seed=2), *texts[5:9]])
    return folder


# The disk


def try_full_disk(folder: Path, source: Path, kind: str, **options: object) -> list[dict[str, Any]]:
    """Runs of `tests.full_disk`; each went on to the set that a run without faults makes."""
    reference = folder / "reference"
    prepare_quietly(reference, source, **options)
    plan_bytes = (reference / ".prep/plan.json").stat().st_size
    manifest_bytes = (reference / "manifest.json").stat().st_size
    request = {
        "folder": str(folder / "disk"),
        "tokenizer": str(reference / "tokenizer.json"),
        "kind": kind,
        "pages": 3 if "dedup" in options else 2,
        "limits": [plan_bytes, (plan_bytes + manifest_bytes) // 2, manifest_bytes - 1],
        "command": ["--input", str(source), "--workers", "1", *as_arguments(**options)],
        "rewrites": "dedup" in options,
    }
    (folder / "disk").mkdir()
    command = [sys.executable, "-m", "tests.full_disk", json.dumps(request)]
    if kind != "limit":
        allowed = subprocess.run(["unshare", "-rm", "true"], capture_output=True)
        if allowed.returncode:
            pytest.skip("mounting is not allowed here")
        command = ["unshare", "-rm", *command]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr[-3000:]
    tries = [json.loads(line) for line in process.stdout.splitlines()]
    for found in tries:
        assert found["files"] == hash_files(reference), found["limit"]
        assert found["left"] == []
    return tries


FULL = r"No space left on device"
AGAIN = r"free some disk and run the same command again"
FOLDERS = [rf"{name}: {FULL}; {AGAIN}$" for name in ("/units", "/tmp", "/lock", "/lock.holder")]
SMALL_FILES = [rf"/{name}: {FULL}; {AGAIN}$" for name in (r"tokenizer.json-\w+", "plan.json")]
UNIT = rf": unit \d could not be written \({FULL}\); {AGAIN}; what is committed stays$"
DEDUP = rf": a unit could not be written again \({FULL}\); {AGAIN}; what is committed stays$"
FORECAST = r": needs about .* of disk in .*, and .* are free; free some, choose another --out"
TOO_LARGE = r"File too large\)?; raise that limit \(ulimit -f\) and run the same command again"


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("inodes", {"dedup": "exact"}, [*FOLDERS, *SMALL_FILES, UNIT, DEDUP]),
        ("bytes", {"dedup": "exact"}, [SMALL_FILES[0], FORECAST, UNIT, DEDUP]),
        ("bytes", {}, [SMALL_FILES[0], FORECAST, UNIT, rf"/manifest.json: {FULL}; {AGAIN}$"]),
        (
            "limit",
            {"unit_bytes": 1500},
            [
                rf"/lock.holder: {TOO_LARGE}$",
                rf"/plan.json: {TOO_LARGE}$",
                rf": unit 0 could not be written \({TOO_LARGE}; what is committed stays$",
                rf"/manifest.json: {TOO_LARGE}$",
            ],
        ),
    ],
    ids=["files", "bytes with dedup", "bytes", "limit"],
)
def test_a_full_disk_at_each_write_is_one_line_and_loses_nothing(
    tmp_path: Path, rare: Path, kind: str, options: dict[str, Any], expected: list[str]
) -> None:
    tries = try_full_disk(tmp_path, rare, kind, **OPTIONS | options)
    lasts = []
    for found in tries:
        lasts.append(found["said"][-1])
        assert found["code"] == int(lasts[-1].startswith("velocity: ")), found
        assert sum("velocity: " in line for line in found["said"]) == found["code"], found["said"]
        assert "Traceback" not in str(found["said"])
    assert any(found["code"] and found["committed"] for found in tries)
    for pattern in expected:
        assert any(re.search(pattern, line) for line in lasts), (pattern, lasts)
    if kind != "limit":
        assert tries[-1]["code"] == 0
