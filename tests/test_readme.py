"""The README's commands, run as they stand there, at a small size."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import HubServer
from tests.runs import SMALL
from tests.test_hub_prep import CARD, NAMES, REPO
from tests.texts import make_texts, write_parquet

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What is appended to make a command small; settings given last win.
SMALL_RUN = [f"{key}={value}" for key, value in SMALL.items()]


def read_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def is_install(command: str) -> bool:
    return command.startswith("python3 -m venv")


def to_process(command: str) -> list[str]:
    """The words of a command, with this environment's programs, at a small size."""
    program, *words = shlex.split(command)
    if program == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", *words, *SMALL_RUN]
    assert program == "velocity", f"this test does not know how to run: {command}"
    small = ["--max-new-tokens", "3"] if words[0] == "sample" else []
    return [sys.executable, "-m", "cli", *words, *small]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    path = write_parquet(tmp_path / "0.parquet", [*make_texts(300)])
    with HubServer() as server:
        server.commit(REPO, {"README.md": CARD, NAMES[0]: path.read_bytes()})
        yield server


def run_commands(commands: list[str], folder: Path, environment: dict[str, str]) -> None:
    for command in commands:
        process = subprocess.run(
            to_process(command),
            cwd=folder,
            env=os.environ | environment | {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert process.returncode == 0, f"{command}\n{process.stderr}"


def test_the_commands_of_the_readme_work_as_written(hub: HubServer, tmp_path: Path) -> None:
    """The three main commands, then the smaller start, each in a folder of its own."""
    blocks = [block.strip().splitlines() for block in read_blocks("bash")]
    blocks = [block for block in blocks if not is_install(block[0])]
    *main_blocks, small_start = blocks
    assert [line for block in main_blocks for line in block] == [
        "velocity prep --out shards/",
        "torchrun --nproc_per_node 4 -m train",
        "velocity sample --ckpt checkpoints/",
    ]
    main = tmp_path / "main"
    main.mkdir()
    run_commands([block[0] for block in main_blocks], main, hub.environment(tmp_path / "home"))

    small = tmp_path / "small"
    (small / "my-texts").mkdir(parents=True)
    lines = [f'{{"text": "{text.split()[0]} and more of it, and more"}}\n' for text in TEXTS]
    (small / "my-texts" / "1.jsonl").write_text("".join(lines))
    run_commands(small_start, small, {})

    [python] = read_blocks("python")
    process = subprocess.run(
        [sys.executable, "-c", python.replace("max_length=150", "max_length=20")],
        cwd=small,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("['Once upon a time")


TEXTS = [f"text{number}" for number in range(200)]


def test_the_readme_names_every_room_and_page() -> None:
    for page in ("docs/design.md", "docs/shards.md", "docs/log.md", ".ci/run"):
        assert page in README
        assert (ROOT / page).exists()


def test_the_install_lines_are_the_ones_that_are_checked() -> None:
    installs = [block for block in read_blocks("bash") if is_install(block)]
    assert len(installs) == 2
    assert "'.[test]'" in installs[1]
