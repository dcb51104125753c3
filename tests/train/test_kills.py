"""200 SIGKILLs of one and two ranks, in every phase: the run ends as if there had been none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import SMALL

# The first rank alone saves and prunes; compiling is every rank's own, and takes long.
KILLS: dict[str, tuple[int, dict[str, int]]] = {
    "one rank": (
        1,
        {
            "start": 20,
            "step": 26,
            "save": 26,
            "rename": 10,
            "prune": 16,
            "evaluate": 14,
            "resume": 18,
        },
    ),
    "two ranks": (
        2,
        {
            "start": 10,
            "step": 16,
            "save": 12,
            "rename": 6,
            "prune": 8,
            "evaluate": 8,
            "resume": 8,
        },
    ),
    "compiling": (1, {"compile": 6}),
}
SETTINGS = SMALL | {
    "training.num_training_steps": 9,
    "training.save_steps": 2,
    "training.eval_steps": 3,
    "training.save_total_limit": 2,
}


def test_there_are_at_least_200_kills() -> None:
    assert sum(sum(wanted.values()) for _, wanted in KILLS.values()) >= 200


@pytest.mark.parametrize("which", KILLS)
def test_killed_in_any_phase_it_ends_as_if_it_had_not_been(
    tiny_shards: Path, tmp_path: Path, which: str
) -> None:
    num_ranks, wanted = KILLS[which]
    words = [f"{key}={value}" for key, value in SETTINGS.items()]
    compiles = str(which == "compiling").lower()
    request = {
        "folder": str(tmp_path),
        "words": [*words, f"data.shards={tiny_shards}", f"training.compile={compiles}"],
        "num_ranks": num_ranks,
        "wanted": wanted,
        "seed": 2026,
    }
    process = subprocess.run(
        [sys.executable, "-m", "tests.servers.kill_train", json.dumps(request)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stderr[-5000:]
    found = json.loads(process.stdout)
    assert all(found["kills"][phase] >= count for phase, count in wanted.items()), found
