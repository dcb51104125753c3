"""The texts that a run writes on its way: what is in its log, and that training is not touched."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import train.samples
from model.decode.settings import Settings
from model.generate import load_generator
from shards.reader import open_shards
from tests.runs import make_config, make_overrides, read_metrics, run_small
from tests.servers.forked import run_ranks
from tests.tiny import make_model, staying_compiled
from train.loop import say_nothing
from train.samples import PROMPTS, Sampler, make_sampler

Shards = Path
EVERY = {"training__sample_steps": 4, "training__save_steps": 4}


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log's samples.jsonl."""
    lines = (folder / "logs" / "samples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def read_weights(folder: Path) -> bytes:
    """The model at the end of a run."""
    return (folder / "checkpoints" / "checkpoint-8" / "model.safetensors").read_bytes()


def test_texts_are_those_of_the_checkpoint_and_training_is_as_without(
    small_shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_small(small_shards, tmp_path / "without", training__save_steps=4)
    capsys.readouterr()
    run_small(small_shards, tmp_path / "with", **EVERY)
    said = capsys.readouterr().err.splitlines()
    assert read_metrics(tmp_path / "with") == read_metrics(tmp_path / "without")
    assert read_weights(tmp_path / "with") == read_weights(tmp_path / "without")
    samples = read_samples(tmp_path / "with")
    assert [(each["step"], each["prompt"]) for each in samples] == [
        (step, prompt) for step in (4, 8) for prompt in PROMPTS
    ]
    assert {each["seed"] for each in samples} == {42}
    for step in (4, 8):
        generator = load_generator(tmp_path / "with" / "checkpoints" / f"checkpoint-{step}")
        texts = generator.complete(PROMPTS, Settings(max_new_tokens=64, seed=42))
        written = [each for each in samples if each["step"] == step]
        assert [each["prompt"] + each["text"] for each in written] == [t.text for t in texts]
        assert len([line for line in said if line.startswith(f'step {step}: wrote "')]) == 1


def test_a_run_that_was_killed_has_each_text_once(small_shards: Shards, tmp_path: Path) -> None:
    """Behind its checkpoint of step 4: before the texts of that step, or after those of step 8."""
    run_small(small_shards, tmp_path, **EVERY)
    log = tmp_path / "logs" / "samples.jsonl"
    whole = log.read_bytes()
    for left in (b"", b"".join(whole.splitlines(keepends=True)[:2])[:-9], whole):
        shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-8")
        log.write_bytes(left)
        run_small(small_shards, tmp_path, **EVERY)
        assert log.read_bytes() == whole


def test_two_ranks_write_one_set_of_texts(small_shards: Shards, tmp_path: Path) -> None:
    for name, settings in (("without", {}), ("with", {"training__sample_steps": 4})):
        run_ranks(2, make_overrides(small_shards, tmp_path / name, **settings))
    assert read_metrics(tmp_path / "with") == read_metrics(tmp_path / "without")
    assert [each["step"] for each in read_samples(tmp_path / "with")] == [4] * 4 + [8] * 4


def test_tensorboard_shows_the_texts(small_shards: Shards, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_small(small_shards, tmp_path, **EVERY)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert sorted(events.Tags()["tensors"]) == [f"samples/{n}" for n in (1, 2, 3, 4)]
    assert events.PluginTagToContent("text").keys() == {*events.Tags()["tensors"]}
    shown = {e.step: e.tensor_proto.string_val[0].decode() for e in events.Tensors("samples/2")}
    written = {
        each["step"]: each for each in read_samples(tmp_path) if each["prompt"] == PROMPTS[1]
    }
    assert shown.keys() == written.keys() == {4, 8}
    for step, each in written.items():
        text = each["prompt"] + each["text"]
        assert shown[step] == "\n".join(f"    {line}" for line in text.split("\n"))


def test_prompts_of_a_file(small_shards: Shards, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("One\r\n\n<|endoftext|>, as text\n")
    run_small(small_shards, tmp_path, **EVERY, training__sample_prompts=tmp_path / "prompts.txt")
    prompts = [each["prompt"] for each in read_samples(tmp_path)]
    assert prompts == 2 * ["One", "", "<|endoftext|>, as text"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file; expected one with a prompt on each line"),
        (b"", "no prompts in it; expected one on each line"),
        (b"a\n\xff\n", "byte 2, on line 2, is 0xff, which is not UTF-8"),
        (b"word " * 40, "prompt 1: the prompt has 41 tokens, the model's context is 32"),
    ],
)
def test_prompts_that_cannot_be_taken_end_the_run_before_its_first_step(
    small_shards: Shards, tmp_path: Path, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    settings = EVERY | {"training__sample_prompts": tmp_path / "prompts.txt"}
    with pytest.raises(ValueError, match=said):
        run_small(small_shards, tmp_path, **settings)
    assert not (tmp_path / "logs" / "metrics.jsonl").exists()


def test_texts_that_fail_end_no_run(
    small_shards: Shards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(self: Sampler, model: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(train.samples.Sampler, "write", fail)
    assert run_small(small_shards, tmp_path, **EVERY).step == 8
    said = capsys.readouterr().err.splitlines()
    assert said.count("texts: cannot be logged to (no memory); the run goes on") == 1


def test_a_model_is_left_as_it_was_and_nothing_is_compiled(
    small_shards: Shards, tmp_path: Path
) -> None:
    config = make_config(small_shards, tmp_path)
    model = make_model(config.model.fit(open_shards(small_shards).manifest.vocab_size)).train()
    sampler = make_sampler(config, open_shards(small_shards), model, say_nothing)
    expected = sampler.write(model)
    with staying_compiled(model):
        assert sampler.write(model) == expected


def test_texts_of_a_model_that_the_ranks_share_in_parts(
    small_shards: Shards, tmp_path: Path
) -> None:
    """On their way, and as the first thing that a run does that goes on: no loss is another one."""
    fsdp: dict[str, object] = {"distributed__strategy": "fsdp", "training__save_steps": 4}
    run_ranks(2, make_overrides(small_shards, tmp_path / "without", **fsdp))
    overrides = make_overrides(small_shards, tmp_path / "with", **EVERY | fsdp)
    run_ranks(2, overrides)
    losses = read_metrics(tmp_path / "without")
    assert read_metrics(tmp_path / "with") == losses
    log = tmp_path / "with" / "logs" / "samples.jsonl"
    whole = log.read_bytes()
    assert [each["step"] for each in read_samples(tmp_path / "with")] == [4] * 4 + [8] * 4
    shutil.rmtree(tmp_path / "with" / "checkpoints" / "checkpoint-8")
    log.write_bytes(b"")
    run_ranks(2, overrides)
    assert log.read_bytes() == whole
    assert read_metrics(tmp_path / "with") == losses
