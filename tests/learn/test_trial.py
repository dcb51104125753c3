"""A trial of benchmarks/learn: real steps of every arm, the same twice; and the sets it reads."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from benchmarks.learn.forms import ARMS, FORMS, Form
from benchmarks.learn.plan import Trial
from benchmarks.learn.run import built, list_settings, run_trial
from benchmarks.learn.sets import make_sets, truncate_gpt2
from prep.tokenizer.gpt2 import build_gpt2_json
from tests.texts import make_texts
from tests.tiny import TOKENIZER_JSON
from tests.tokenized import write_set
from train.settings import load_config

FORM: Form = replace(
    FORMS["small"],
    model={
        "model.hidden_size": 32,
        "model.num_hidden_layers": 2,
        "model.num_attention_heads": 2,
        "model.intermediate_size": 84,
    },
    training={"training.precision": "fp32", "training.batch_size_per_device": 4},
    max_seq_length=16,
    tokens_per_step=64,
    held_out_windows=40,
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both sets."""
    folder = tmp_path_factory.mktemp("work")
    write_set(folder / "train", TOKENIZER_JSON, make_texts(60), "<|endoftext|>")
    write_set(folder / "held-out", TOKENIZER_JSON, make_texts(40, seed=5), "<|endoftext|>")
    return folder


@pytest.mark.parametrize("arm", ARMS)
def test_the_same_trial_gives_the_same_loss_and_learns(work: Path, arm: str) -> None:
    trial = Trial(arm, 1e-2, 0, 12)
    result = run_trial(FORM, trial, work)
    assert result["loss"] < 5.4 < 5.7, "ln 300 = 5.70 is where it begins"
    assert result["loss"] != result["last_training_loss"]
    assert run_trial(FORM, trial, work)["loss"] == result["loss"]
    assert run_trial(FORM, replace(trial, seed=1), work)["loss"] != result["loss"]
    assert result["cpu_seconds"] >= 0
    text = json.dumps(result, allow_nan=False)
    assert str(work) not in text


def test_both_shapes_read_the_same_windows_and_have_equal_blocks(work: Path) -> None:
    read = {}
    for arm in ("nanogpt", "llama"):
        settings = list_settings(FORM, Trial(arm, 1e-3, 3, 4)) | {
            "data.shards": work / "train",
            "infrastructure.output_dir": work / "runs" / arm,
        }
        config = load_config(None, [f"{name}={value}" for name, value in settings.items()])
        with built(config, is_gpt2=arm == "nanogpt") as run:
            run.batches.next_step()
            run.batches.next_step()
            read[arm] = run.batches.windows
    for one, other in zip(read["nanogpt"], read["llama"], strict=True):
        assert one.equal(other)
    small = FORMS["small"].model
    size, inner = small["model.hidden_size"], small["model.intermediate_size"]
    assert isinstance(size, int)
    assert isinstance(inner, int)
    # Ours has no more weights than the baseline: 1 % fewer.
    assert 0.989 * 12 * size**2 <= 4 * size**2 + 3 * size * inner <= 12 * size**2


def test_a_loss_that_is_not_finite_is_null(work: Path) -> None:
    result = run_trial(FORM, Trial("linear", 1e15, 0, 4), work)
    assert result["loss"] is None
    json.dumps(result, allow_nan=False)


def test_gpt2s_first_merges_are_a_tokenizer() -> None:
    cut = Tokenizer.from_str(truncate_gpt2(600))
    assert cut.get_vocab_size() == 600
    assert cut.token_to_id("<|endoftext|>") == 599
    # All merges that its ids need are there, to the last.
    assert cut.encode(cut.decode([598])).ids == [598]
    whole = Tokenizer.from_str(build_gpt2_json())
    cut.encode_special_tokens = whole.encode_special_tokens = True
    for text in make_texts(20):
        ids = cut.encode(text).ids
        assert cut.decode(ids) == text
        assert max(ids) < 599
        # Whatever only the first merges reach is GPT-2's own.
        own = whole.encode(text).ids
        assert ids == own or max(own) >= 599
    whole_ids = {token: i for token, i in whole.get_vocab().items() if i < 599}
    assert {token: i for token, i in cut.get_vocab().items() if i < 599} == whole_ids


def test_sets_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no set; give --input and --held-out, or make"):
        make_sets(tmp_path, [], None, None, 600)
