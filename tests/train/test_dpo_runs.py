"""Runs that learn preferences: exactly, and alike however they are dealt and resumed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.adapters.files import load_adapter
from model.checkpoints.folder import load_model
from model.checkpoints.seal import ADAPTER_WEIGHTS
from model.transformer import Transformer
from shards.reader import open_shards
from tests.chats import Chat, write_chats
from tests.preferences import Pair
from tests.runs import make_overrides, read_metrics
from tests.servers.forked import run_ranks
from tests.texts import make_texts
from tests.tiny import TOKENIZER_JSON
from tests.tokenized import write_set
from tests.train.test_dpo import BETA, compute_naively
from tests.train.test_model_start import make_words, run_from, save_theirs
from tests.train.test_train import assert_equal_bits, checkpoint_tensors
from train.loop import train
from train.preferences.dpo import METRICS
from train.settings import load_config

ROW = 40
END = 0
SETTINGS: dict[str, Any] = {
    "data__max_seq_length": ROW,
    "training__objective": "dpo",
    "training__dpo_beta": BETA,
    "training__schedule": "constant",
    "training__warmup_steps": 0,
    "training__learning_rate": 3e-3,
    "training__gradient_accumulation_steps": "auto",
}


def make_preferences(count: int, seed: int) -> list[Pair]:
    """Pairs of which the answer in the ids 1 to 7 is preferred to the one in the ids 8 to 14."""
    random = np.random.default_rng(seed)
    pairs: list[Pair] = []
    for sizes in random.integers((2, 1, 1), (6, 5, 5), (count, 3)).tolist():
        ranges = ((1, 300), (1, 8), (8, 15))
        prompt, *answers = (
            random.integers(*ids, size).tolist() for ids, size in zip(ranges, sizes, strict=True)
        )
        chosen, rejected = ([*answer, END] for answer in answers)
        pairs.append((prompt, chosen, rejected))
    return pairs


def as_chat(pair: Pair) -> Chat:
    """A pair as a set has it."""
    prompt, chosen, rejected = pair
    middle, size = len(prompt + chosen), 2 * len(prompt) + len(chosen + rejected)
    spans = (len(prompt), middle), (middle + len(prompt), size)
    return Chat((*prompt, *chosen, *prompt, *rejected), spans, middle)


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


def load(folder: Path) -> Transformer:
    """A model's folder."""
    return load_model(folder, torch.device("cpu"), torch.float32)


def find_weights(folder: Path, step: int) -> Path:
    """A checkpoint of the run in a folder."""
    return folder / "checkpoints" / f"checkpoint-{step}"


def count_rows(pairs: Path) -> int:
    """The rows of the train split."""
    return open_shards(pairs).manifest.num_tokens("train") // ROW


def test_a_made_up_preference_is_learned(pairs: Path, start: Path, tmp_path: Path) -> None:
    """For prompts that were not trained on."""
    more = {
        "training__num_training_steps": 20,
        "training__eval_steps": 1,
        "training__global_batch_tokens": 4 * ROW,
    }
    run_from(pairs, tmp_path, start, **SETTINGS, **more)
    accuracies = read_metrics(tmp_path, "validation_rewards/accuracies")
    losses = read_metrics(tmp_path, "validation_loss")
    assert accuracies[20] == 1 > accuracies[1]
    assert losses[20] < 0.1 < 0.6 < losses[1] < np.log(2)
    assert read_metrics(tmp_path)[1] == pytest.approx(np.log(2), abs=1e-6)
    margins = read_metrics(tmp_path, "rewards/margins")
    assert margins[20] > margins[5] > margins[1] == 0


def test_what_is_logged_is_what_the_formula_says(pairs: Path, start: Path, tmp_path: Path) -> None:
    """Of all pairs in one step, in micro-steps with unlike numbers of them, and of validation."""
    more = {
        "training__num_training_steps": 2,
        "training__save_steps": 1,
        "training__eval_steps": 1,
        "training__eval_windows": 10**6,
        "training__global_batch_tokens": count_rows(pairs) * ROW,
        "training__batch_size_per_device": 7,
    }
    run_from(pairs, tmp_path, start, **SETTINGS, **more)
    answers = sum(len(chosen + rejected) for _, chosen, rejected in TRAIN)
    share = answers / (count_rows(pairs) * ROW)
    assert read_metrics(tmp_path, "trained_share")[1] == pytest.approx(share, abs=1e-6)
    reference = load(start)
    for step, validated in ((1, 2), (2, None)):
        model = load(find_weights(tmp_path, step))
        for name, of, at in (("", TRAIN, validated), ("validation_", VALIDATION, step)):
            if at is None:
                continue
            with torch.no_grad():
                expected = compute_naively(model, reference, of).tolist()
            names = ("validation_loss" if name else "loss", *(name + each for each in METRICS))
            for metric, value in zip(names, expected, strict=True):
                assert read_metrics(tmp_path, metric)[at] == pytest.approx(value, abs=2e-5), metric


def test_steps_are_the_same_however_pairs_are_dealt(
    pairs: Path, start: Path, tmp_path: Path
) -> None:
    """In other micro-batches, also of unlike sizes, and on two ranks."""
    common = SETTINGS | {
        "training__global_batch_tokens": 7 * ROW,
        "training__num_training_steps": 3,
        "training__eval_windows": 5,
    }
    for name, size in (("one", 7), ("three", 3)):
        run_from(pairs, tmp_path / name, start, **common, training__batch_size_per_device=size)
    words = make_words(pairs, tmp_path / "two", start, **common, training__batch_size_per_device=3)
    run_ranks(2, words)
    metrics = ["loss", "grad_norm", "validation_loss", *METRICS]
    metrics += [f"validation_{name}" for name in METRICS]
    for name in ("three", "two"):
        for metric in metrics:
            one, other = (read_metrics(tmp_path / n, metric) for n in ("one", name))
            assert len(one) == (1 if metric.startswith("validation") else 3)
            assert other == pytest.approx(one, rel=1e-4, abs=1e-5), metric
        left, right = (checkpoint_tensors(tmp_path / n, 3) for n in ("one", name))
        for key in left:
            torch.testing.assert_close(right[key], left[key], rtol=1e-4, atol=1e-4)


def test_a_run_goes_on_bit_for_bit_with_the_reference_of_its_beginning(
    pairs: Path, start: Path, tmp_path: Path
) -> None:
    settings = SETTINGS | {"training__save_steps": 3, "training__num_training_steps": 5}
    own = shutil.copytree(start, tmp_path / "start")
    run_from(pairs, tmp_path / "straight", own, **settings)
    run_from(pairs, tmp_path / "resumed", own, **settings)
    shutil.rmtree(find_weights(tmp_path / "resumed", 5))
    # Other weights there would be another reference.
    kept = own.rename(tmp_path / "kept")
    save_theirs(own, vocab_size=302, initializer_range=0.1)
    with pytest.raises(ValueError, match="its weights are not those that the run began with"):
        run_from(pairs, tmp_path / "resumed", own, **settings)
    shutil.rmtree(own)
    kept.rename(own)
    run_from(pairs, tmp_path / "resumed", own, **settings)
    straight, resumed = (checkpoint_tensors(tmp_path / n, 5) for n in ("straight", "resumed"))
    assert_equal_bits(straight, resumed)
    for metric in ("loss", "validation_loss", *METRICS):
        assert read_metrics(tmp_path / "straight", metric) == read_metrics(
            tmp_path / "resumed", metric
        )


def test_sets_that_do_not_have_what_is_learned_are_refused(
    pairs: Path, start: Path, tmp_path: Path
) -> None:
    words = make_overrides(pairs, tmp_path, **SETTINGS, model__max_position_embeddings=64)
    with pytest.raises(ValueError, match=r"objective=dpo compares .* set model\.start to a model"):
        train(load_config(None, words))
    with pytest.raises(ValueError, match=r"has preferences, and .*learn the rejected answers too"):
        run_from(pairs, tmp_path, start, data__max_seq_length=ROW)
    plain, chats = tmp_path / "plain", tmp_path / "chats"
    write_set(plain, TOKENIZER_JSON, make_texts(60), "<|endoftext|>", row_tokens=ROW)
    write_chats(chats, [Chat((5, 6, 7, 0), ((2, 4),))] * 20, ROW)
    for folder, kind in ((plain, "plain text"), (chats, "conversations")):
        with pytest.raises(ValueError, match=f"has {kind}, but .* needs pairs of a chosen"):
            run_from(folder, tmp_path, start, **SETTINGS)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dpo_beta": 0}, "dpo_beta is 0.0; expected a number above 0"),
        ({"dpo_label_smoothing": 0.5}, "dpo_label_smoothing is 0.5; expected a number from 0 to"),
        ({"objective": "dpo", "z_loss": 0.1}, "z_loss=0.1 is for training.objective=likelihood"),
        ({"objective": "ppo"}, "objective is 'ppo'; expected one of likelihood, dpo"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, [f"training.{key}={value}" for key, value in changes.items()])


def test_the_samples_of_a_bad_step_are_told(pairs: Path, start: Path, tmp_path: Path) -> None:
    """Each row with the mean loss of its own pairs; the weights stay as they were."""
    settings = SETTINGS | {
        "training__on_bad_step": "skip",
        "training__spike_window": 2,
        "training__spike_threshold": 1e-3,
        "training__learning_rate": 1e-4,
        "training__save_steps": 1,
        "training__num_training_steps": 9,
        "training__save_total_limit": 9,
        "training__global_batch_tokens": 3 * ROW,
    }
    run_from(pairs, tmp_path, start, **settings)
    record = json.loads((tmp_path / "logs" / "bad-steps.jsonl").read_text().splitlines()[-1])
    model, reference = load(find_weights(tmp_path, record["step"])), load(start)
    assert len(record["samples"]) == 3
    for sample in record["samples"]:
        places = [int(document["source_row"]) for document in sample["documents"]]
        with torch.no_grad():
            expected = compute_naively(model, reference, [TRAIN[place] for place in places])
        assert sample["loss"] == pytest.approx(float(expected[0]), rel=1e-4)


def test_an_adapter_learns_with_the_model_below_it_as_reference(
    pairs: Path, start: Path, tmp_path: Path
) -> None:
    """Bit for bit when it goes on, and what is logged is what the formula says."""
    settings = SETTINGS | {
        "training__adapter": "lora",
        "training__adapter_rank": 2,
        "training__save_steps": 1,
        "training__eval_windows": 10**6,
        "training__num_training_steps": 3,
        "training__learning_rate": 0.02,
    }
    run_from(pairs, tmp_path / "straight", start, **settings)
    model, reference = load(start), load(start)
    load_adapter(model, find_weights(tmp_path / "straight", 3))
    with torch.no_grad():
        expected = compute_naively(model, reference, VALIDATION).tolist()
    assert expected[0] < 0.68
    for metric, value in zip(("loss", *METRICS), expected, strict=True):
        found = read_metrics(tmp_path / "straight", f"validation_{metric}")[3]
        assert found == pytest.approx(value, abs=2e-5), metric
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    for step in (2, 3):
        shutil.rmtree(find_weights(tmp_path / "resumed", step))
    run_from(pairs, tmp_path / "resumed", start, **settings)
    own = [find_weights(tmp_path / name, 3) / ADAPTER_WEIGHTS for name in ("straight", "resumed")]
    assert own[0].read_bytes() == own[1].read_bytes()


def test_the_named_settings_learn_in_fp16_and_say_by_what(
    pairs: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All pairs once; the loss scale is in the gradients of both products of the head."""
    words = {
        "data.shards": pairs,
        "model.start": start,
        "infrastructure.output_dir": tmp_path / "checkpoints",
        "infrastructure.logging_dir": tmp_path / "logs",
        "training.global_batch_tokens": 4 * ROW,
        "training.batch_size_per_device": 2,
        "training.activation_checkpointing": "none",
        "training.learning_rate": 3e-3,
        "training.logging_steps": 1,
    }
    outcome = train(load_config("dpo", [f"{key}={value}" for key, value in words.items()]))
    assert outcome.step == -(-count_rows(pairs) // 4)
    said = capsys.readouterr().err
    assert f"objective    DPO, beta 0.1; the reference is {start}" in said
    assert "fp16" in said
    assert read_metrics(tmp_path, "skipped_steps")[outcome.step] == 0
    assert read_metrics(tmp_path, "validation_rewards/accuracies")[outcome.step] > 0.9
    assert outcome.validation_loss is not None
    assert outcome.validation_loss < 0.6
    with pytest.raises(ValueError, match=r"--config dpo goes on from a model; add model\.start="):
        load_config("dpo")
