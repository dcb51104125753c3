"""Runs that train an adapter: what is trained, saved, gone on with, and refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.adapters.config import AdapterConfig
from model.adapters.files import read_adapter_config
from model.adapters.parts import find_parts, load_parts
from model.checkpoints.folder import save_model
from model.checkpoints.seal import CheckpointError, seal, verify
from model.decode.settings import Settings
from model.generate import load_generator
from tests.commands import velocity
from tests.runs import SMALL, read_metrics
from tests.servers.forked import run_ranks
from tests.texts import make_texts
from tests.tiny import CONFIG, TOKENIZER_JSON, make_model
from tests.tokenized import write_set
from tests.train.test_model_start import (
    STILL,
    add_chat_tokens,
    make_words,
    run_from,
    save_ours,
    save_theirs,
)
from tests.train.test_train import assert_equal_bits
from train.checkpoints.position import read_run_config
from train.loop import train
from train.settings import load_config

# peft's own calls of what transformers will drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
KINDS = pytest.mark.parametrize("kind", ["lora", "dora"])
SEVERAL = {"training__learning_rate": 3e-3, "training__save_steps": 3}


@pytest.fixture(scope="module")
def chat_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose tokenizer has two ids more than the folders' embeddings have rows."""
    folder = tmp_path_factory.mktemp("chat") / "shards"
    write_set(folder, add_chat_tokens(), make_texts(60), "<|endoftext|>")
    return folder


def last_of(out: Path, step: int = 8) -> Path:
    return out / "checkpoints" / f"checkpoint-{step}"


def tensors_of(out: Path, step: int = 8) -> dict[str, Tensor]:
    """All that the checkpoint of an adapter's run holds in tensors."""
    folder = last_of(out, step)
    names = ("adapter_model.safetensors", "optimizer.safetensors")
    return {f"{name} {key}": t for name in names for key, t in load_file(folder / name).items()}


def expect_refusal(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        train(load_config(None, words))
    assert "\n" not in str(caught.value)


@KINDS
def test_a_run_trains_and_saves_its_adapter_alone(
    kind: str, tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_ours(tmp_path / "base")
    before = load_file(base / "model.safetensors")
    targets = "down_proj,q_proj"
    run_from(
        tiny_shards, tmp_path, base, training__adapter=kind, training__adapter_rank=4,
        training__adapter_targets=targets, **SEVERAL,
    )  # fmt: skip
    losses = read_metrics(tmp_path)
    assert losses[8] < losses[1] - 0.05
    folder = last_of(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_base.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "checksums.json",
        "config.json",
        "generation_config.json",
        "optimizer.safetensors",
        "run_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_state.json",
    ]
    verify(folder)
    config = AdapterConfig("dora" if kind == "dora" else "lora", 4, 16, ("q_proj", "down_proj"))
    assert read_adapter_config(folder) == config
    # Ollama refuses 16.0.
    assert '"lora_alpha": 16,' in (folder / "adapter_config.json").read_text()
    run = read_run_config(folder)
    shapes = {name: t.shape for name, t in load_file(folder / "adapter_model.safetensors").items()}
    assert sum(shape.numel() for shape in shapes.values()) == run.trained_parameters
    moments = load_file(folder / "optimizer.safetensors")
    prefix = "base_model.model."
    assert {name.removesuffix(".exp_avg") for name in moments if name.endswith("exp_avg")} == {
        name.removeprefix(prefix) for name in shapes
    }
    size = sum((folder / name).stat().st_size for name in folder.glob("*.safetensors"))
    assert run.checkpoint_bytes < size < run.checkpoint_bytes + 20_000
    # The base is as it was, in its folder and in what the adapter is merged into.
    assert_equal_bits(load_file(base / "model.safetensors"), before)
    merged = load_parts(find_parts(folder)).state_dict()
    for name, weight in before.items():
        is_adapted = "q_proj" in name or "down_proj" in name
        assert torch.equal(merged[name], weight) != is_adapted, name
    name = "DoRA" if kind == "dora" else "LoRA"
    assert (
        f"{run.trained_parameters:,} more of an adapter ({name} of rank 4 on q_proj and down_proj)"
        in " ".join(capsys.readouterr().err.split())
    )


def test_the_loss_of_a_new_adapter_is_that_of_its_base(tiny_shards: Path, tmp_path: Path) -> None:
    base = save_theirs(tmp_path / "base", torch.bfloat16)
    for kind in ("null", "lora", "dora"):
        run_from(tiny_shards, tmp_path / kind, base, training__adapter=kind, **STILL)
    [plain], [lora], [dora] = (
        read_metrics(tmp_path / kind).values() for kind in ("null", "lora", "dora")
    )
    assert plain == lora == pytest.approx(dora, abs=1e-6)


@KINDS
def test_new_tokens_are_trained_with_the_adapter(
    kind: str, chat_like: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_theirs(tmp_path / "base", tie_word_embeddings=kind == "lora")
    run_from(chat_like, tmp_path, base, training__adapter=kind, **SEVERAL)
    assert f"2 tokens new to {base}: trained with" in capsys.readouterr().err
    folder = last_of(tmp_path)
    assert read_adapter_config(folder).token_ids == (300, 301)
    tensors = load_file(folder / "adapter_model.safetensors")
    rows = {name: t for name, t in tensors.items() if "trainable_tokens_delta" in name}
    assert len(rows) == (1 if kind == "lora" else 2)
    known = load_parts(find_parts(base)).state_dict()
    merged = load_parts(find_parts(folder)).state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(merged[name][:300], known[name])
    head = merged["lm_head.weight"]
    assert not torch.allclose(head[300:], known["lm_head.weight"].mean(0))
    place = "model.embed_tokens" if kind == "lora" else "lm_head"
    assert torch.equal(
        head[300:], rows[f"base_model.model.{place}.token_adapter.trainable_tokens_delta"]
    )
    peft = pytest.importorskip("peft")
    # It finds the base, and gives it as many rows as the tokenizer has tokens, by itself.
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.tensor([[5, 300, 17, 301, 9, 300, 2]])
    with torch.no_grad():
        ours = load_parts(find_parts(folder))(tokens)
        assert (theirs(tokens).logits - ours).abs().max() < 1e-4


def test_a_run_that_is_killed_goes_on_bit_for_bit(tiny_shards: Path, tmp_path: Path) -> None:
    base = save_ours(tmp_path / "base")
    kept = {key: value for key, value in SMALL.items() if not key.startswith("model.")}
    kept |= {"training.gradient_accumulation_steps": 64, "training.adapter": "dora"}
    words = [f"{key}={value}" for key, value in kept.items()]
    code, said, errors = velocity(
        "verify-resume", "--out", tmp_path / "proof", "--steps", 9, "--ranks", 2,
        f"data.shards={tiny_shards}", f"model.start={base}", *words,
    )  # fmt: skip
    assert code == 0, errors
    assert "the same, bit for bit, after 9 steps" in said


def test_a_run_goes_on_with_the_base_that_it_began_with_and_no_other(
    chat_like: Path, tmp_path: Path
) -> None:
    base = save_ours(tmp_path / "base")
    more = {"training__cycle_steps": 6, "training__adapter": "lora"}
    run_from(chat_like, tmp_path / "straight", base, **more)
    run_from(chat_like, tmp_path / "part", base, **more, training__num_training_steps=3)
    run_from(chat_like, tmp_path / "part", base, **more)
    assert read_metrics(tmp_path / "part") == read_metrics(tmp_path / "straight")
    assert_equal_bits(tensors_of(tmp_path / "part"), tensors_of(tmp_path / "straight"))
    for key, value in (("rank", 9), ("alpha", 9.0), ("targets", "q_proj")):
        words = make_words(chat_like, tmp_path / "part", base, **more)
        expect_refusal(
            [*words, f"training.adapter_{key}={value}"], f"was trained with training.adapter_{key}="
        )
    shutil.rmtree(base)
    save_model(base, make_model(CONFIG, seed=1), TOKENIZER_JSON)
    seal(base)
    words = make_words(chat_like, tmp_path / "part", base, **more)
    expect_refusal(words, f"{base}: its weights are not those that the run began with (sha256 ")
    with pytest.raises(CheckpointError, match="not the model that"):
        find_parts(tmp_path / "part" / "checkpoints")


def test_a_run_that_began_with_the_newest_of_a_folder_goes_on_with_that_one(
    tiny_shards: Path, tmp_path: Path
) -> None:
    more = {"training__cycle_steps": 6, "training__adapter": "lora"}
    folder = tmp_path / "checkpoints"
    save_ours(folder / "checkpoint-1")
    run_from(tiny_shards, tmp_path / "run", folder, **more, training__num_training_steps=3)
    save_model(folder / "checkpoint-2", make_model(CONFIG, seed=1), TOKENIZER_JSON)
    seal(folder / "checkpoint-2")
    run_from(tiny_shards, tmp_path / "run", folder, **more)
    assert find_parts(last_of(tmp_path / "run")).base == folder / "checkpoint-1"
    shutil.rmtree(folder / "checkpoint-1")
    words = make_words(tiny_shards, tmp_path / "run", folder, **more)
    expect_refusal(words, f"restore {folder / 'checkpoint-1'}")


def test_ranks_train_one_adapter(chat_like: Path, tmp_path: Path) -> None:
    base = save_ours(tmp_path / "base")
    kind = {"training__adapter": "dora"}
    run_from(chat_like, tmp_path / "alone", base, training__gradient_accumulation_steps=4, **kind)
    run_ranks(2, make_words(chat_like, tmp_path / "two", base, **kind))
    for metric in ("loss", "grad_norm"):
        expected = read_metrics(tmp_path / "alone", metric)
        assert read_metrics(tmp_path / "two", metric) == pytest.approx(expected, abs=1e-4)


def test_a_folder_of_adapters_is_a_run(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its newest is sampled, all are evaluated; inspect says what they are."""
    base = save_ours(tmp_path / "base")
    run_from(
        tiny_shards, tmp_path, base, training__adapter="lora", training__sample_steps=4,
        training__save_steps=4, training__keep_best=True, training__eval_steps=4,
    )  # fmt: skip
    run = tmp_path / "checkpoints"
    [text] = load_generator(run, "cpu").complete(["The"], Settings(seed=1, max_new_tokens=8))
    code, said, errors = velocity("sample", "--ckpt", run, "--prompt", "The", "--seed", 1,
                                  "--max-new-tokens", 8)  # fmt: skip
    assert (code, text.text in said) == (0, True), errors
    assert f"an adapter, merged in memory into {base}" in errors
    code, said, _ = velocity(
        "eval", "--ckpt", run, "--all", "--shards", tiny_shards, "--windows", 4, "--json"
    )
    found = [json.loads(line) for line in said.splitlines()]
    assert (code, [report["step"] for report in found]) == (0, [4, 8])
    logged = read_metrics(tmp_path, "validation_loss")
    assert logged.keys() >= {4, 8}
    code, said, errors = velocity("inspect", last_of(tmp_path))
    assert code == 0, errors
    assert "LoRA of rank 8" in said
    assert f"velocity merge {last_of(tmp_path)}" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__adapter_targets": "q_proj,w"}, "training.adapter_targets: 'w'; expected some"),
        ({"training__adapter_targets": "q_proj,q_proj"}, "a name twice; expected some of q_proj"),
        ({"training__adapter_rank": 0}, "training.adapter_rank is 0; expected at least 1"),
        ({"training__adapter_alpha": -1}, "training.adapter_alpha is -1.0; expected a number"),
        ({"training__optimizer": "muon"}, "training.optimizer is muon, which is for whole"),
        ({"distributed__strategy": "fsdp"}, "which needs distributed.strategy=ddp"),
        ({"model__start": "null"}, "model.start names no model that it is for; set model.start"),
    ],
)
def test_what_no_adapter_can_be_trained_with_is_refused(
    changes: dict[str, Any], message: str, tiny_shards: Path, tmp_path: Path
) -> None:
    words = make_words(tiny_shards, tmp_path, tmp_path / "base", training__adapter="lora")
    words += [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_config(None, words)
    assert "\n" not in str(caught.value)


def test_a_plan_counts_what_is_trained(tiny_shards: Path, tmp_path: Path) -> None:
    base = save_ours(tmp_path / "base")
    words = [f"model.start={base}", "data.max_seq_length=16", "training.adapter=lora"]
    words += ["training.adapter_rank=2", "training.batch_size_per_device=2"]
    asked = "plan", "--shards", tiny_shards, "--gpu", "L4", "--json"
    code, said, errors = velocity(*asked, *words)
    assert code == 0, errors
    lora = json.loads(said)
    full = json.loads(velocity(*asked, *words, "training.adapter=null")[1])
    # Of 3 blocks: q, k, v and o of 64 x 64, and three of 64 x 96.
    assert lora["trained_parameters"] == 3 * 2 * (4 * 128 + 3 * 160)
    assert full["trained_parameters"] == full["parameters"] == lora["parameters"]
    assert lora["checkpoint_bytes"] == 12 * lora["trained_parameters"]
    assert lora["memory"]["gradients"] == 4 * lora["trained_parameters"]
    assert lora["memory"]["optimizer"] == 8 * lora["trained_parameters"]
    assert lora["memory"]["weights"] == full["memory"]["weights"] + lora["memory"]["gradients"]
    assert "LoRA of rank 2 on all linear layers" in velocity(*asked[:-1], *words)[1]


def test_what_takes_models_only_says_how_an_adapter_becomes_one(
    tiny_shards: Path, tmp_path: Path
) -> None:
    base = save_ours(tmp_path / "base")
    run_from(tiny_shards, tmp_path, base, training__adapter="lora", **STILL)
    folder = last_of(tmp_path, 1)
    message = f"make a plain folder of both: velocity merge {folder} NEW"
    expect_refusal(make_words(tiny_shards, tmp_path / "new", folder), message)
    alone = tmp_path / "as peft saves it"
    alone.mkdir()
    for path in folder.glob("adapter_*"):
        shutil.copy(path, alone)
    expect_refusal(
        make_words(tiny_shards, tmp_path / "new", alone), f"velocity merge '{alone}' NEW"
    )
    code, _, errors = velocity(
        "publish", "--ckpt", folder, "--repo", "u/n", "--license", "mit", "--dry-run",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert (code, message in errors) == (1, True), errors
    code, _, errors = velocity(
        "export", "--ckpt", folder, "--format", "gguf", "--dtype", "fp32",
        "--out", tmp_path / "model.gguf",
    )  # fmt: skip
    assert code == 0, errors
    assert f"an adapter, merged in memory into {base}" in errors
