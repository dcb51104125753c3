"""`--config sft`: chats to a model that answers, as TRL trains it and as transformers asks it."""

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model.chat.template import find_template
from model.generate import load_generator
from shards.reader import open_shards
from tests.commands import velocity
from tests.runs import read_metrics
from tests.tiny import TOKENIZER_JSON
from tests.train.test_model_start import run_from, save_theirs
from train.loop import train
from train.publish.card import make_card
from train.publish.facts import gather
from train.settings import load_config

ROW = 128
CHATS = [
    [
        {"role": "user", "content": "The quick brown fox?"},
        {"role": "assistant", "content": "It jumps over the lazy dog."},
        {"role": "user", "content": "And then"},
        {"role": "assistant", "content": "text comes in shards"},
    ],
    [
        {"role": "system", "content": "we'd rather not"},
        {"role": "user", "content": "naïve café"},
        {"role": "assistant", "content": "A model learns from text."},
    ],
    [
        {"role": "user", "content": "shards"},
        {"role": "assistant", "content": "2026"},
    ],
]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chats as a set."""
    folder = tmp_path_factory.mktemp("chats")
    (folder / "tokenizer.json").write_text(TOKENIZER_JSON)
    # As many again, so that an epoch has some rows.
    lines = [json.dumps({"messages": chat}) + "\n" for chat in CHATS * 3]
    (folder / "chats.jsonl").write_text("".join(lines))
    options = ("--tokenizer", "tokenizer.json", "--pack-tokens", ROW, "--validation-fraction", 0)
    words = ("prep", "--chat", "--input", "chats.jsonl", "--out", "chat/", *options)
    code, _, errors = velocity(*words, cwd=folder)
    assert code == 0, errors
    return folder / "chat"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows no tokens of chats."""
    return save_theirs(tmp_path_factory.mktemp("start") / "theirs", max_position_embeddings=ROW)


@pytest.fixture(scope="module")
def tuned(chats: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with nothing said but its size."""
    out = tmp_path_factory.mktemp("tuned")
    words = [f"data.shards={chats}", f"model.start={start}", "training.precision=fp32"]
    words += [f"infrastructure.output_dir={out}", f"training.global_batch_tokens={2 * ROW}"]
    words += ["training.logging_steps=1", f"infrastructure.logging_dir={out / 'logs'}"]
    train(load_config("sft", words))
    return out


def test_a_run_needs_a_set_and_a_model_alone(tuned: Path, chats: Path) -> None:
    """Rows, steps and shape come from these two."""
    rows = open_shards(chats).manifest.num_tokens("train") // ROW
    assert len(read_metrics(tuned)) == -(-3 * rows // 2)
    shares = read_metrics(tuned, "trained_share")
    assert all(0 < share < 0.5 for share in shares.values())


def test_a_plan_and_a_trace_know_chats(tuned: Path, chats: Path, start: Path) -> None:
    """The plan has the run's steps; a step leads to chats."""
    words = ("--shards", chats, "--gpu", "H100", "--json", f"model.start={start}")
    batch = f"training.global_batch_tokens={2 * ROW}"
    code, out, errors = velocity("plan", "--config", "sft", *words, batch)
    assert code == 0, errors
    rows = open_shards(chats).manifest.num_tokens("train") // ROW
    assert json.loads(out)["step_tokens"] == 2 * ROW
    assert json.loads(out)["tokens"] == -(-3 * rows // 2) * 2 * ROW
    code, out, errors = velocity("shards", "trace", chats, "--run", tuned, "--step", 1)
    assert code == 0, errors
    assert "chats.jsonl" in out


def test_what_it_began_with_is_told(tuned: Path, start: Path, chats: Path) -> None:
    """By inspect, and by the card, which names no path of this machine."""
    [checkpoint] = tuned.glob("checkpoint-*")
    state = json.loads((checkpoint / "training_state.json").read_text())["began_with"]
    code, said, errors = velocity("inspect", checkpoint)
    assert code == 0, errors
    assert f"velocity chat --ckpt {checkpoint}" in said
    assert f"{start} (weights: sha256 {state['weights_sha256'][:12]})" in said
    card = make_card(gather(checkpoint), "user/name", "mit", None, False)
    assert "fine-tuned on chats with Velocity" in card
    assert f"the weights of theirs, sha256 {state['weights_sha256']}" in card
    assert str(start) not in card.replace("\\", "")
    assert str(chats) not in card.replace("\\", "")


def test_named_settings_say_what_they_need() -> None:
    with pytest.raises(ValueError, match=r"--config sft goes on from a model; add model\.start="):
        load_config("sft", [])


def test_others_write_chats_as_the_set_has_them(tuned: Path, chats: Path) -> None:
    """transformers' apply_chat_template gives the ids and the mask of the set."""
    [checkpoint] = tuned.glob("checkpoint-*")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    stream = open_shards(chats).stream("train")
    tokens = stream.windows(np.arange(0, stream.num_tokens, ROW), ROW).ravel().tolist()
    for messages in CHATS:
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        text = [*ids, 0]
        assert any(tokens[i : i + len(text)] == text for i in range(len(tokens)))
    generator = load_generator(checkpoint)
    assert generator.model.config.num_ids == 302
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert model.config.vocab_size == 302
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == [0, end_of_turn]
    asked = tokenizer.apply_chat_template(CHATS[2][:1], tokenize=False, add_generation_prompt=True)
    template = find_template(checkpoint)
    assert template is not None
    with closing(template):
        assert template.render(CHATS[2][:1]) == asked


def read_chat_files(folder: Path) -> dict[str, Any]:
    """What a folder's newest checkpoint says of chats, and the ids of one."""
    checkpoint = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return {
        "template": (checkpoint / "chat_template.jinja").read_bytes(),
        "tokens": json.loads((checkpoint / "tokenizer_config.json").read_text())["eos_token"],
        "ends": json.loads((checkpoint / "generation_config.json").read_text())["eos_token_id"],
        "ids": tokenizer.apply_chat_template(CHATS[0], tokenize=True, return_dict=False),
    }


@pytest.mark.parametrize("adapter", ["null", "lora"])
def test_plain_text_after_chats_keeps_their_format(
    tuned: Path, tiny_shards: Path, tmp_path: Path, adapter: str
) -> None:
    """The template, the ends of turns and the tokens, which the text's tokenizer lacks."""
    [checkpoint] = tuned.glob("checkpoint-*")
    start, expected = shutil.copytree(checkpoint, tmp_path / "start"), read_chat_files(tuned)
    assert b"<|im_end|>" not in (tiny_shards / "tokenizer.json").read_bytes()
    short: dict[str, object] = {"training__adapter": adapter, "training__num_training_steps": 1}
    run_from(tiny_shards, tmp_path, start, **short)
    assert read_chat_files(tmp_path / "checkpoints") == expected
    if adapter == "null":  # Of its own checkpoint, when the start is gone.
        shutil.rmtree(start)
    run_from(tiny_shards, tmp_path, start, **short | {"training__num_training_steps": 2})
    assert (tmp_path / "checkpoints" / "checkpoint-2").is_dir()
    assert read_chat_files(tmp_path / "checkpoints") == expected


def test_public_models_keep_their_format(tiny_shards: Path, tmp_path: Path) -> None:
    """One whose template is in tokenizer_config.json, and that ends turns by an id of its own."""
    start = save_theirs(tmp_path / "theirs", eos_token_id=[7, 9])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    template = "{% for one in messages %}{{ one.content + eos_token }}{% endfor %}"
    text = json.dumps(config | {"chat_template": template})
    (start / "tokenizer_config.json").write_text(text)
    run_from(tiny_shards, tmp_path, start, training__num_training_steps=1)
    found = read_chat_files(tmp_path / "checkpoints")
    assert found["template"] == template.encode()
    assert found["ends"] == [0, 7, 9]
    assert found["ids"].count(0) == len(CHATS[0])
    tokenizer = (tmp_path / "checkpoints" / "checkpoint-1" / "tokenizer.json").read_bytes()
    assert tokenizer == (tiny_shards / "tokenizer.json").read_bytes()


def test_a_model_without_a_template_gets_none(tiny_shards: Path, tmp_path: Path) -> None:
    run_from(
        tiny_shards,
        tmp_path,
        save_theirs(tmp_path / "theirs"),
        **{"training__num_training_steps": 1},
    )
    assert not (tmp_path / "checkpoints" / "checkpoint-1" / "chat_template.jinja").exists()


def test_the_template_of_chats_comes_before_that_of_the_start(
    tuned: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line says so where they differ, and none is there where they do not."""
    [checkpoint] = tuned.glob("checkpoint-*")
    told = "its chat template is not that of"
    one_step = {"data__max_seq_length": ROW, "training__num_training_steps": 1}
    run_from(chats, tmp_path / "same", checkpoint, **one_step)
    assert told not in capsys.readouterr().err
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": CHATS[0]}) + "\n")
    options = ("--tokenizer", checkpoint / "tokenizer.json", "--validation-fraction", 0)
    other = ("--template", "plain", "--pack-tokens", ROW, "--out", "other/", *options)
    code, _, errors = velocity("prep", "--chat", "--input", "chats.jsonl", *other, cwd=tmp_path)
    assert code == 0, errors
    run_from(tmp_path / "other", tmp_path, checkpoint, **one_step)
    assert f"{tmp_path / 'other'}: {told} {checkpoint}; " in capsys.readouterr().err
    found = read_chat_files(tmp_path / "checkpoints")["template"]
    assert found == (tmp_path / "other" / "chat_template.jinja").read_bytes()


@pytest.mark.filterwarnings("ignore")  # Theirs.
def test_the_loss_is_that_of_trl(chats: Path, start: Path, tmp_path: Path) -> None:
    """SFTTrainer's, with assistant_only_loss, of the same conversations, padded and not packed."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    words = [f"data.shards={chats}", f"model.start={start}", "training.precision=fp32"]
    words += [f"infrastructure.output_dir={tmp_path}", "training.learning_rate=0"]
    rows = open_shards(chats).manifest.num_tokens("train") // ROW
    words += [f"training.global_batch_tokens={rows * ROW}", "training.epochs=1"]
    train(load_config("sft", [*words, "training.logging_steps=1"]))
    lines = (tmp_path / "logs" / "metrics.jsonl").read_text().splitlines()
    loss = next(json.loads(line)["loss"] for line in lines if "loss" in line)

    [checkpoint] = tmp_path.glob("checkpoint-*")  # Nothing was learned: the start, with its rows.
    options: dict[str, Any] = {"per_device_train_batch_size": len(CHATS), "bf16": False}
    settings = trl.SFTConfig(
        str(tmp_path / "trl"), assistant_only_loss=True, use_cpu=True, report_to=[], **options
    )
    trainer = trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(checkpoint),
        args=settings,
        train_dataset=datasets.Dataset.from_list([{"messages": chat} for chat in CHATS]),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        theirs = float(trainer.compute_loss(trainer.model, batch))
    assert loss == pytest.approx(theirs, rel=1e-5)
