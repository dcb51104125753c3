"""Fixtures that several test files share."""

import gc
import os
import signal
from pathlib import Path

import pytest

# Tiny models gain nothing from threads, and test processes run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from tests.texts import make_texts, prepare_quietly, write_jsonl
from tests.tiny import TOKENIZER_JSON
from tests.tokenized import write_set

# What is imported and collected is no garbage; see pytest_collection_finish.
gc.disable()

# A shell's background job ignores Ctrl-C, and what nohup starts a hangup; so would the commands
# that tests stop with them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The files that take longest: they start processes, kill them, or compare with large libraries.
# They come first, so that no process is left with one at the end; all others are marked `fast`.
SLOW_FILES = (
    "test_kills.py",
    "test_near.py",
    "test_ray.py",
    "test_signals.py",
    "test_tokenizers.py",
    "test_benchmarks.py",
    "test_faults.py",
    "test_torchrun.py",
    "test_pieces.py",
    "test_processes.py",
    "test_prep.py",
    "test_verify_resume.py",
    "test_tune_lr.py",
    "test_strategy.py",
    "test_model_start.py",
    "test_chat_runs.py",
    "test_export.py",
    "test_train.py",
    "test_saving.py",
    "test_hub_paths.py",
    "test_samples.py",
    "test_serve_malformed.py",
    "test_serve_process.py",
    "test_serve_chat.py",
    "test_chat.py",
    "test_batcher.py",
    "test_serve.py",
    "test_run_faults.py",
    "test_memory.py",
    "test_project.py",
    "test_hub_faults.py",
    "test_parquet.py",
    "test_import_tokenizers.py",
    "test_bad_documents.py",
    "test_ending.py",
    "test_going_on.py",
    "test_publish.py",
    "test_storage.py",
    "test_kinds.py",
    "test_arrow.py",
    "test_readme.py",
    "test_remove.py",
    "test_parts.py",
    "test_generate.py",
    "test_hub.py",
    "test_bad_steps.py",
    "test_rollback.py",
    "test_dedup.py",
    "test_append.py",
    "test_programs.py",
    "test_import_faults.py",
    "test_quickstart.py",
    "test_buckets.py",
    "test_page.py",
    "test_serve_page_trained.py",
    "test_serve_page.py",
    "test_cli.py",
    "test_trace.py",
    "test_sidecars.py",
    "test_filters.py",
    "test_damage.py",
    "test_failing_disk.py",
    "test_vocabulary.py",
    "test_import.py",
    "test_batch.py",
    "test_hub_prep.py",
    "test_documents.py",
    "test_tokenizer.py",
    "test_spelling.py",
    "test_remote.py",
    "test_python_docs.py",
    "test_planted.py",
    "test_storage_versions.py",
    "test_hostile_folders.py",
    "test_model.py",
    "test_contained.py",
    "test_lost_names.py",
    "test_upload.py",
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


def pytest_collection_finish() -> None:
    """Look no more for garbage among what is there to stay: a million objects, at each look."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """What a test draws without a seed of its own does not hang on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of a tokenizer of 300 ids, which loads at once."""
    folder = tmp_path_factory.mktemp("tiny") / "shards"
    write_set(folder, TOKENIZER_JSON, make_texts(60), "<|endoftext|>")
    return folder


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished set of about 30,000 tokens, a tenth of them for validation."""
    folder = tmp_path_factory.mktemp("small")
    source = write_jsonl(folder / "source.jsonl", [*make_texts(400)])
    prepare_quietly(folder / "shards", source, validation_fraction="0.1")
    return folder / "shards"
