"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

# Tiny models gain nothing from threads, and test processes run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.texts import make_texts, prepare_quietly, write_jsonl


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished set of about 30,000 tokens, a tenth of them for validation."""
    folder = tmp_path_factory.mktemp("small")
    source = write_jsonl(folder / "source.jsonl", [*make_texts(400)])
    prepare_quietly(folder / "shards", source, validation_fraction="0.1")
    return folder / "shards"
