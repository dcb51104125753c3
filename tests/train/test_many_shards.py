"""A set of 11,068 shards, as RefinedWeb's is: a run starts in seconds, and needs few open files."""

import resource
import time
from pathlib import Path

import pytest

from benchmarks.shards.large import make_large, read_first_batch
from shards.format import read_manifest
from tests.runs import make_overrides, read_metrics
from tests.servers.forked import Forked

NUM_UNITS = 5534  # Each of them a shard of train, and one of validation.


@pytest.fixture(scope="module")
def large_set(small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set's shards linked under many names, with their sidecars."""
    folder = tmp_path_factory.mktemp("large") / "shards"
    make_large(read_manifest(small_shards), small_shards, folder, NUM_UNITS)
    return folder


def allow_few_files() -> None:
    """As `ulimit -n 256` does."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))


def test_a_run_reads_them_under_a_limit_of_256_open_files(large_set: Path, tmp_path: Path) -> None:
    """Its four steps read more than 256 shards."""
    settings = {"training__batch_size_per_device": 64, "training__num_training_steps": 4}
    overrides = make_overrides(large_set, tmp_path, **settings)
    process = Forked(["train", *overrides], setup=allow_few_files)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert sorted(read_metrics(tmp_path)) == [1, 2, 3, 4]
    assert sorted(read_metrics(tmp_path, "validation_loss")) == [4]


def test_a_rank_is_ready_in_seconds(large_set: Path) -> None:
    """From the manifest to the first batch, in time of the CPU: five seconds are too many."""
    started = time.process_time()
    tokens = read_first_batch(large_set)
    seconds = time.process_time() - started
    assert tokens.shape == (8, 16)
    assert seconds < 3
