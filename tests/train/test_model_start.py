"""model.start: a new run begins with a folder's weights and shape, and says which they were."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from model.checkpoints.folder import load_model, save_model
from model.checkpoints.seal import seal
from model.config import ModelConfig
from tests.runs import make_overrides, read_metrics
from tests.servers.forked import run_ranks
from tests.texts import make_texts
from tests.tiny import CONFIG, TOKENIZER_JSON, make_model
from tests.tokenized import write_set
from tests.train.test_train import assert_equal_bits, checkpoint_tensors
from train.checkpoints.position import read_run_config
from train.loop import train
from train.settings import load_config

# Nothing is learned, so that the weights stay those of the folder.
STILL = {
    "training__learning_rate": 0,
    "training__min_learning_rate": 0,
    "training__num_training_steps": 1,
}


def make_words(shards: Path, out: Path, start: Path, **changes: object) -> list[str]:
    """The settings of a small run that say nothing of its model."""
    words = make_overrides(shards, out, **{"model__start": start, **changes})
    named = {key.replace("__", ".") for key in changes}
    return [w for w in words if not w.startswith("model.") or w.partition("=")[0] in named] + [
        f"model.start={start}"
    ]


def run_from(shards: Path, out: Path, start: Path, **changes: object) -> None:
    """That run."""
    train(load_config(None, make_words(shards, out, start, **changes)))


def save_theirs(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A Llama as transformers saves one, with the tokenizer of the tiny set."""
    torch.manual_seed(1)
    shape: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "eos_token_id": 0,
        "bos_token_id": 0,
    }
    model = LlamaForCausalLM(LlamaConfig(**(shape | changes))).to(dtype)
    model.save_pretrained(folder, max_shard_size="30KB" if dtype == torch.float32 else "5GB")
    (folder / "tokenizer.json").write_text(TOKENIZER_JSON)
    return folder


def save_ours(folder: Path, tokenizer_json: str = TOKENIZER_JSON, **changes: Any) -> Path:
    """A sealed folder of ours."""
    save_model(folder, make_model(ModelConfig(**(vars(CONFIG) | changes))), tokenizer_json)
    seal(folder)
    return folder


def add_chat_tokens() -> str:
    """The tiny tokenizer with two more special tokens, as a chat set has them."""
    tokenizer = Tokenizer.from_str(TOKENIZER_JSON)
    tokenizer.add_special_tokens(
        [
            AddedToken(text, special=True, normalized=False)
            for text in ("<|im_start|>", "<|im_end|>")
        ]
    )
    return str(tokenizer.to_str())


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A folder's weights in fp32."""
    return dict(load_model(folder).state_dict())


@pytest.fixture(scope="module")
def chat_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose tokenizer has two ids more than the folders' embeddings have rows."""
    folder = tmp_path_factory.mktemp("chat") / "shards"
    write_set(folder, add_chat_tokens(), make_texts(60), "<|endoftext|>")
    return folder


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        (torch.float32, {"tie_word_embeddings": True}),  # In several files.
        (torch.float32, {"tie_word_embeddings": False, "num_key_value_heads": 2}),
        (torch.bfloat16, {"head_dim": 16, "rms_norm_eps": 1e-6}),
        (
            torch.float16,
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}},
        ),
    ],
)
def test_a_run_begins_with_the_model_of_a_public_folder(
    tiny_shards: Path, tmp_path: Path, dtype: torch.dtype, changes: dict[str, Any]
) -> None:
    """Its loss before any update is transformers', and its first checkpoint is that model."""
    folder = save_theirs(tmp_path / "theirs", dtype, **changes)
    run_from(tiny_shards, tmp_path, folder, **STILL)
    before = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    after = LlamaForCausalLM.from_pretrained(tmp_path / "checkpoints" / "checkpoint-1")
    tokens = torch.arange(60)[None] * 5 % 300
    assert torch.equal(before(tokens).logits, after(tokens).logits)
    for key in ("rope_parameters", "rms_norm_eps", "head_dim", "num_key_value_heads"):
        assert getattr(before.config, key) == getattr(after.config, key)


def test_a_run_goes_on_without_its_folder(tiny_shards: Path, tmp_path: Path) -> None:
    """Bit for bit as one that was never stopped; its checkpoints say what it began with."""
    folder = save_ours(tmp_path / "ours")
    run_from(tiny_shards, tmp_path / "straight", folder, training__cycle_steps=6)
    part = {"training__cycle_steps": 6, "training__num_training_steps": 3}
    run_from(tiny_shards, tmp_path / "part", folder, **part)
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    shutil.rmtree(folder)
    run_from(tiny_shards, tmp_path / "part", folder, training__cycle_steps=6)
    assert read_metrics(tmp_path / "part") == read_metrics(tmp_path / "straight")
    assert_equal_bits(
        checkpoint_tensors(tmp_path / "part", 8), checkpoint_tensors(tmp_path / "straight", 8)
    )
    last = tmp_path / "part" / "checkpoints" / "checkpoint-8"
    state = json.loads((last / "training_state.json").read_text())
    assert state["began_with"] == {"folder": str(folder), "weights_sha256": sha256}
    assert read_run_config(last).model.start == str(folder)


def test_a_run_begins_with_the_newest_checkpoint_of_a_run(
    tiny_shards: Path, tmp_path: Path
) -> None:
    """At step 0, in its own folder, with its optimizer at rest; the old run is as it was."""
    folder = save_ours(tmp_path / "ours")
    run_from(tiny_shards, tmp_path / "old", folder)
    old = tmp_path / "old" / "checkpoints"
    run_from(tiny_shards, tmp_path / "new", old, **STILL)
    assert read_metrics(tmp_path / "new").keys() == {1}
    new = tmp_path / "new" / "checkpoints" / "checkpoint-1"
    before = read_weights(old / "checkpoint-8")
    for name, weight in read_weights(new).items():
        assert torch.equal(weight, before[name]), name
    assert not torch.equal(before["model.norm.weight"], make_model().model.norm.weight)
    state = json.loads((new / "training_state.json").read_text())
    assert state["began_with"]["folder"] == str(old / "checkpoint-8")


def test_rows_are_added_for_more_ids(
    chat_like: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is the mean of the rows of the folder's tokens; the others stay as they were."""
    folder = save_theirs(tmp_path / "theirs", tie_word_embeddings=False)
    run_from(chat_like, tmp_path, folder, **STILL)
    said = capsys.readouterr().err
    assert (
        "its embedding has 300 rows, but the set has 302 ids; 2 rows are added, each the mean of "
        "its tokens' rows" in said
    )
    before = read_weights(folder)
    for name, weight in read_weights(tmp_path / "checkpoints" / "checkpoint-1").items():
        rows = before[name]
        if len(rows) < len(weight):
            assert name in ("model.embed_tokens.weight", "lm_head.weight")
            torch.testing.assert_close(weight[300:], rows.mean(0).expand(2, -1))
            assert weight[300:].abs().max() > 0
        assert torch.equal(weight[: len(rows)], rows)


def test_a_padded_embedding_keeps_its_rows(chat_like: Path, tmp_path: Path) -> None:
    """New tokens then have rows that the folder already has."""
    folder = save_ours(tmp_path / "ours", vocab_size=320)
    run_from(chat_like, tmp_path, folder, **STILL)
    before, after = (
        read_weights(where) for where in (folder, tmp_path / "checkpoints" / "checkpoint-1")
    )
    assert after["lm_head.weight"].shape == (320, 64)
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])


def test_ranks_begin_alike(chat_like: Path, tmp_path: Path) -> None:
    """Two ranks, each with all of the model or with half of each weight, as one rank alone."""
    folder = save_theirs(tmp_path / "theirs", tie_word_embeddings=False, num_key_value_heads=2)
    alone = {"training__gradient_accumulation_steps": 4}
    run_from(chat_like, tmp_path / "alone", folder, **alone)
    for strategy in ("ddp", "fsdp"):
        out = tmp_path / strategy
        run_ranks(2, make_words(chat_like, out, folder, distributed__strategy=strategy))
        for metric in ("loss", "grad_norm"):
            expected = read_metrics(tmp_path / "alone", metric)
            assert read_metrics(out, metric) == pytest.approx(expected, abs=1e-4)


def expect_refusal(words: list[str], *messages: str) -> None:
    """The run does not begin, and says each of these."""
    with pytest.raises(ValueError, match=re.escape(messages[0])) as caught:
        train(load_config(None, words))
    assert all(message in str(caught.value) for message in messages)
    assert "\n" not in str(caught.value)


def test_settings_that_contradict_the_folder_are_refused(tiny_shards: Path, tmp_path: Path) -> None:
    """All of them at once; those that agree are not."""
    folder = save_ours(tmp_path / "ours", num_key_value_heads=2)
    wrong = {"model__hidden_size": 32, "model__num_key_value_heads": 4}
    expect_refusal(
        make_words(tiny_shards, tmp_path / "a", folder, **wrong),
        f"{folder}: model.hidden_size is 32, but 64 there; model.num_key_value_heads is 4, but 2 "
        "there; leave these settings out, as model.start decides them, or change the folder with "
        "velocity convert",
    )
    assert not (tmp_path / "a").exists()
    expect_refusal(
        make_words(tiny_shards, tmp_path / "a", folder, model__vocab_size=301),
        f"{folder}: model.vocab_size is 301, but 300 there; leave these settings out",
    )
    right = {"model__hidden_size": 64, "model__num_key_value_heads": 2, "model__vocab_size": 300}
    run_from(tiny_shards, tmp_path / "b", folder, **right, **STILL)
    expect_refusal(
        make_words(tiny_shards, tmp_path / "c", folder, data__max_seq_length=200),
        "data.max_seq_length is 200; the model's context, model.max_position_embeddings=128",
    )


def test_a_named_configuration_lends_its_recipe_to_another_shape(tmp_path: Path) -> None:
    words = ["model.start=folder", "model.hidden_size=64"]
    config = load_config("tiny", words)
    assert config.model == ModelConfig(start="folder", hidden_size=64)
    assert config.training == load_config("tiny").training
    file = tmp_path / "own.yaml"
    file.write_text("model:\n  start: folder\n  hidden_size: 64\n")
    assert load_config(str(file)).model == config.model
    assert load_config(str(file), ["model.start=other"]).model == ModelConfig(start="other")


def test_a_run_keeps_its_beginning(tiny_shards: Path, tmp_path: Path) -> None:
    """Another folder, or a checkpoint to go on from, is not mixed in."""
    folder, other = save_ours(tmp_path / "ours"), save_ours(tmp_path / "other")
    run_from(tiny_shards, tmp_path / "run", folder, **STILL)
    expect_refusal(
        make_words(tiny_shards, tmp_path / "run", other),
        f"checkpoint-1: its run began with model.start={folder}, now it is {other}; keep it as",
    )
    named = {"infrastructure__resume_from_checkpoint": tmp_path / "run/checkpoints/checkpoint-1"}
    expect_refusal(
        make_words(tiny_shards, tmp_path / "new", other, **named),
        f"model.start={other} starts a new run, but infrastructure.resume_from_checkpoint=",
    )


def test_a_set_of_another_tokenizer_is_refused(tiny_shards: Path, tmp_path: Path) -> None:
    """Ids must mean the same, and texts be cut alike."""
    content = json.loads(TOKENIZER_JSON)
    vocab = content["model"]["vocab"]
    one, two = sorted(vocab, key=vocab.get)[40:42]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    folder = save_ours(tmp_path / "ours", json.dumps(content))
    expect_refusal(
        make_words(tiny_shards, tmp_path / "run", folder),
        f"{tiny_shards}: its tokenizer is not that of {folder}: id 40 is {one!r}, but {two!r} "
        "there; prepare the set with the model's own: velocity prep ... --tokenizer "
        f"{folder}/tokenizer.json",
    )
    content = json.loads(TOKENIZER_JSON)
    content["model"]["merges"] = content["model"]["merges"][:10]
    folder = save_ours(tmp_path / "less", json.dumps(content))
    expect_refusal(
        make_words(tiny_shards, tmp_path / "run", folder),
        "its tokenizer is not that of",
        "we'd rather not.\" becomes [",
    )


def test_what_is_no_model_to_train_is_refused(tiny_shards: Path, tmp_path: Path) -> None:
    """A folder that is not there, one of the Hub, quantized weights, another architecture."""
    out = tmp_path / "run"
    expect_refusal(make_words(tiny_shards, out, tmp_path / "none"), "no such folder; expected a")
    expect_refusal(
        [*make_words(tiny_shards, out, tmp_path), "model.start=hf://user/name"],
        "model.start is hf://user/name; expected a folder on this machine",
        "hf download user/name --local-dir user/name",
    )
    for key, value, message in (
        ("quantization_config", {"quant_method": "int8"}, "its weights are quantized"),
        ("attention_bias", True, "attention_bias is True, expected False"),
        ("intermediate_size", 52, "intermediate_size to 48"),
    ):
        folder = save_theirs(tmp_path / key)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {key: value}))
        expect_refusal(make_words(tiny_shards, out, folder), message)
    assert not out.exists()
