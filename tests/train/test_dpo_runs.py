"""Runs that learn preferences: they do, exactly and alike however they are dealt and resumed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.chats import Chat, write_chats
from tests.preferences import Pair
from tests.runs import read_metrics
from tests.train.test_model_start import run_from, save_theirs

ROW = 40
END = 0
SETTINGS: dict[str, Any] = {
    "data__max_seq_length": ROW,
    "training__objective": "dpo",
    "training__dpo_beta": 0.3,
    "training__schedule": "constant",
    "training__warmup_steps": 0,
    "training__learning_rate": 2e-3,
    "training__batch_size_per_device": 2,
    "training__gradient_accumulation_steps": 2,
}


def make_preferences(count: int, seed: int) -> list[Pair]:
    """Pairs of which the answer in small ids is preferred to the one in large ids."""
    random = np.random.default_rng(seed)
    pairs = []
    for sizes in random.integers((2, 1, 1), (6, 5, 5), (count, 3)).tolist():
        ranges = ((1, 300), (1, 100), (200, 300))
        parts = (random.integers(*r, size).tolist() for r, size in zip(ranges, sizes, strict=True))
        pairs.append(tuple(parts))
    return pairs  # type: ignore[return-value]


def as_chat(pair: Pair) -> Chat:
    """A pair as a set has it: an end token behind each answer is a part of it."""
    prompt, chosen, rejected = pair
    first, second = [*prompt, *chosen, END], [*prompt, *rejected, END]
    middle, size = len(first), len(first) + len(second)
    spans = (len(prompt), middle), (middle + len(prompt), size)
    return Chat((*first, *second), spans, middle)


TRAIN, VALIDATION = make_preferences(120, seed=1), make_preferences(20, seed=2)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of preferences, with a validation split."""
    folder = tmp_path_factory.mktemp("pairs") / "pairs"
    chats, validation = [*map(as_chat, TRAIN)], [*map(as_chat, VALIDATION)]
    write_chats(folder, chats, ROW, validation=validation)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that all runs here begin with."""
    return save_theirs(tmp_path_factory.mktemp("start") / "theirs", vocab_size=302)


def test_a_made_up_preference_is_learned(pairs: Path, start: Path, tmp_path: Path) -> None:
    """Of validation pairs, half are judged rightly before, and nearly all after some steps."""
    more = {
        "training__eval_steps": 1,
        "training__num_training_steps": 25,
        "training__logging_steps": 5,
    }
    run_from(pairs, tmp_path, start, **SETTINGS, **more)
    accuracies = read_metrics(tmp_path, "validation_rewards/accuracies")
    assert accuracies[25] >= 0.95
    losses = read_metrics(tmp_path, "validation_loss")
    assert losses[25] < 0.5 * losses[1] < 0.5 * 0.7
    margins = read_metrics(tmp_path, "rewards/margins")
    assert margins[25] > margins[5] > 0
