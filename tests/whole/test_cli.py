"""The command line, as people type it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import velocity
from tests.runs import run_small
from tests.texts import make_texts, write_jsonl


@pytest.fixture(scope="module")
def checkpoints(small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_small(small_shards, folder, training__save_steps=4)
    return folder / "checkpoints"


def test_sample_from_a_folder_of_checkpoints(checkpoints: Path) -> None:
    code, output, _ = velocity("sample", "--ckpt", checkpoints, "--max-length", 12, "--seed", 1)
    assert code == 0
    again = velocity("sample", "--ckpt", f"{checkpoints}/", "--max-length", 12, "--seed", 1)
    assert again[1] == output
    whole = velocity(
        "sample",
        "--ckpt",
        checkpoints / "checkpoint-8",
        "--max-length",
        12,
        "--seed",
        1,
        "--no-stream",
    )
    assert whole[1] == output


def test_sample_takes_prompts_from_words_files_and_standard_input(
    checkpoints: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("the one\n\nthe other\n")
    options = ["--ckpt", checkpoints, "--temperature", 0, "--max-new-tokens", 3]
    _, one, _ = velocity("sample", *options, "--prompt", "the one")
    assert one.startswith("the one")
    _, same, _ = velocity("sample", *options, "--prompt-file", "-", stdin="the one\n")
    assert same == one
    code, bytes_text, _ = velocity("sample", *options, "--prompt", "caf\udce9")  # Not UTF-8.
    assert code == 0
    assert bytes_text.startswith("caf\ufffd")
    _, lines, _ = velocity("sample", *options, "--prompt-lines", tmp_path / "prompts.txt")
    assert "--- prompt 1, sample 1: 3 tokens, ended by length ---\n" + one in lines
    assert "--- prompt 3, sample 1: 3 tokens, ended by length ---\nthe other" in lines
    _, two, _ = velocity(
        "sample", *options[:2], "--prompt", "a", "--num-samples", 2, "--max-length", 9
    )
    assert two.count("--- prompt 1, sample ") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt", "nowhere"], "nowhere"),
        (["--ckpt", "empty"], "empty"),
        (["--ckpt", "RUN", "--prompt", "the " * 40], "the model's context is 32"),
        (["--ckpt", "RUN", "--temperature", "-1"], "temperature is -1"),
        (["--ckpt", "RUN", "--prompt-file", "no.txt"], "no.txt: No such file or directory"),
        (["--ckpt", "RUN", "--device", "cuda"], "torch sees no GPU"),
        (["--ckpt", "RUN", "--max-length", "1", "--prompt", "the one"], "max_length is 1"),
    ],
)
def test_sample_tells_mistakes_in_one_line(
    checkpoints: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    arguments = [str(checkpoints) if word == "RUN" else word for word in arguments]
    code, output, errors = velocity("sample", *arguments, cwd=tmp_path)
    assert code == 1
    assert output == ""
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert errors.startswith("velocity: ")


def test_a_flipped_byte_is_named_and_the_checkpoint_before_is_offered(
    small_shards: Path, tmp_path: Path
) -> None:
    run_small(small_shards, tmp_path, training__save_steps=4)
    weights = tmp_path / "checkpoints" / "checkpoint-8" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 4
    weights.write_bytes(content)
    code, _, errors = velocity("sample", "--ckpt", weights.parent, "--max-length", 5)
    assert code == 1
    assert str(weights) in errors
    assert "checkpoint-4" in errors
    code, _, errors = velocity("sample", "--ckpt", tmp_path / "checkpoints", "--max-length", 5)
    assert code == 0
    assert str(weights) in errors


def test_shards_commands(small_shards: Path, checkpoints: Path) -> None:
    code, output, _ = velocity("shards", "info", small_shards)
    assert code == 0
    assert "documents" in output
    assert velocity("shards", "verify", small_shards)[0] == 0
    code, output, errors = velocity("shards", "show", small_shards, "--document", 3)
    assert output.removesuffix("\n") in make_texts(400)
    assert "source.jsonl" in errors
    _, window, _ = velocity("shards", "show", small_shards, "--start", 0, "--tokens", 200)
    assert "<|endoftext|>" in window
    code, output, _ = velocity("shards", "trace", small_shards, "--run", checkpoints, "--step", 2)
    assert output.count("sample ") == 4
    doc_hash = output.splitlines()[1].split(" of ")[1].split()[0]
    _, back, _ = velocity(
        "shards", "trace", small_shards, "--run", checkpoints, "--doc-hash", doc_hash
    )
    assert "2" in back.split("steps ")[1].split(" of ")[0].split(", ")
    _, planned, _ = velocity(
        "shards", "trace", small_shards, "--config", "tiny", "--ranks", 2, "--step", 1
    )
    assert planned.count("sample ") == 16
    for choices in ((), ("--step", 1, "--doc-hash", doc_hash)):
        code, _, errors = velocity("shards", "trace", small_shards, "--run", checkpoints, *choices)
        assert (code, errors) == (
            1,
            "velocity: what should be traced? give exactly one of --step, --url and --doc-hash\n",
        )


def test_verify_fails_on_damage(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*make_texts(20)])
    assert velocity("prep", "--input", "a.jsonl", "--out", "shards", cwd=tmp_path)[0] == 0
    tokens = tmp_path / "shards" / "train-00000.bin"
    tokens.write_bytes(b"\1" + tokens.read_bytes()[1:])
    code, output, errors = velocity("shards", "verify", cwd=tmp_path)
    assert code == 1
    assert "shards/train-00000.bin: its sha256 is not the manifest's; damaged in bytes 0" in output
    assert "1 of 5 files are damaged" in errors or "1 of 3 files are damaged" in errors


def test_debug_shows_the_traceback() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "cli", "shards", "info", "nowhere", "--debug"],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert "Traceback" in process.stderr


def test_the_installed_command_says_mistakes_in_one_line(tmp_path: Path) -> None:
    process = subprocess.run(
        [Path(sys.executable).parent / "velocity", "shards", "info", "nowhere"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.startswith("velocity: nowhere: no such folder; make ")
    assert process.stderr.count("\n") == 1


def test_help_is_there_for_every_command() -> None:
    for words in ([], ["prep"], ["sample"], ["convert"], ["quickstart"], ["shards"]):
        code, output, _ = velocity(*words, "--help")
        assert code == 0
        assert "Usage: velocity" in output


def test_a_seed_checkpoint_is_sampled_and_converted(tmp_path: Path) -> None:
    import json

    import torch

    from model.config import ModelConfig
    from model.transformer import Transformer

    config = {
        "vocab_size": 50257,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
    folder = tmp_path / "checkpoint-10"
    folder.mkdir()
    torch.save(Transformer(ModelConfig(**config)).state_dict(), folder / "pytorch_model.bin")
    settings = {"model": config | {"hidden_act": "silu"}, "tokenizer": {"tokenizer_name": "gpt2"}}
    (folder / "config.json").write_text(json.dumps(settings))
    options = ["--prompt", "the", "--temperature", 0, "--max-new-tokens", 5]
    code, output, errors = velocity("sample", "--ckpt", folder, *options)
    assert code == 0, errors
    code, _, errors = velocity("convert", folder, tmp_path / "new")
    assert code == 0, errors
    assert velocity("sample", "--ckpt", tmp_path / "new", *options)[1] == output
