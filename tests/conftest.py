"""Fixtures that several test files share."""

import os
import signal
from pathlib import Path

import pytest

# Tiny models gain nothing from threads, and test processes run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.texts import make_texts, prepare_quietly, write_jsonl

# A shell's background job ignores Ctrl-C, and so would the commands that tests stop with it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The files that take longest: they start processes, kill them, or compare with large libraries.
# They come first, so that no process is left with one at the end; all others are marked `fast`.
SLOW_FILES = (
    "test_processes.py",
    "test_prep.py",
    "test_kills.py",
    "test_benchmarks.py",
    "test_hub_faults.py",
    "test_faults.py",
    "test_readme.py",
    "test_train.py",
    "test_vocabularies.py",
    "test_run_faults.py",
    "test_rollback.py",
    "test_strategy.py",
    "test_bad_steps.py",
    "test_reports.py",
    "test_quickstart.py",
    "test_append.py",
    "test_remove.py",
    "test_dedup.py",
    "test_ray.py",
    "test_parts.py",
    "test_tokenizer.py",
    "test_vocabulary.py",
    "test_storage.py",
    "test_storage_versions.py",
    "test_hub_prep.py",
    "test_upload.py",
    "test_python_docs.py",
    "test_project.py",
    "test_hub.py",
    "test_import.py",
    "test_import_faults.py",
    "test_failing_disk.py",
    "test_lost_names.py",
    "test_planted.py",
    "test_links.py",
    "test_trace.py",
    "test_bad_documents.py",
    "test_kinds.py",
    "test_foreign_folders.py",
    "test_hostile_folders.py",
    "test_generate.py",
    "test_documents.py",
    "test_damage.py",
    "test_many_shards.py",
    "test_heap.py",
    "test_model.py",
    "test_stats.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the slow files to the front, and mark the tests of all others `fast`."""

    def place(item: pytest.Item) -> int:
        name = item.path.name
        return SLOW_FILES.index(name) if name in SLOW_FILES else len(SLOW_FILES)

    for item in items:
        if item.path.name not in SLOW_FILES:
            item.add_marker(pytest.mark.fast)
    items.sort(key=place)


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished set of about 30,000 tokens, a tenth of them for validation."""
    folder = tmp_path_factory.mktemp("small")
    source = write_jsonl(folder / "source.jsonl", [*make_texts(400)])
    prepare_quietly(folder / "shards", source, validation_fraction="0.1")
    return folder / "shards"
