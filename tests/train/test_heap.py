"""A run on a CPU takes its memory from the kernel once, not in every step."""

import platform
import resource
from pathlib import Path

import pytest

from tests.runs import make_overrides, read_metrics
from tests.servers.forked import Forked
from train import loop

FAULTS = Path("faults")
NUM_STEPS = 8


def count_faults() -> None:
    """Have each step write down the page faults that it took."""
    take_step = loop.take_step

    def counting(run: loop.Run) -> object:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        result = take_step(run)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        with FAULTS.open("a") as file:
            file.write(f"{after - before}\n")
        return result

    loop.take_step = counting  # type: ignore[assignment]


def count_faults_without() -> None:
    """The same, with malloc as it is."""
    count_faults()
    loop.keep_freed_memory = lambda device: None


def run_counted(shards: Path, folder: Path, setup: object) -> list[int]:
    """The page faults of each step of a run with 51 MB of logits; malloc itself keeps up to 32."""
    folder.mkdir()
    settings = {"training__batch_size_per_device": 16, "training__num_training_steps": NUM_STEPS}
    overrides = make_overrides(shards, folder, **settings)
    process = Forked(["train", *overrides], cwd=folder, setup=setup)  # type: ignore[arg-type]
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return [int(line) for line in (folder / FAULTS).read_text().split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
def test_steps_take_no_new_memory_and_lose_nothing(small_shards: Path, tmp_path: Path) -> None:
    kept = run_counted(small_shards, tmp_path / "kept", count_faults)
    without = run_counted(small_shards, tmp_path / "without", count_faults_without)
    assert len(kept) == len(without) == NUM_STEPS
    # 51 MB are 12,564 pages.
    assert min(without[4:]) > 12_000
    assert sorted(kept[4:])[1] < 200
    assert read_metrics(tmp_path / "kept") == read_metrics(tmp_path / "without")
