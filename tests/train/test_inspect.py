"""`velocity inspect` says what a folder is, what is missing or damaged in it, and how to use it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints.folder import save_model
from model.checkpoints.seal import seal
from model.export.int8 import write as write_int8
from model.export.source import open_source
from tests.commands import velocity
from tests.model.test_checkpoint_folder import write_seed_checkpoint
from tests.texts import make_texts, prepare_quietly, write_parquet
from tests.tiny import CONFIG, TOKENIZER_JSON, make_model
from train.inspect.folders import inspect_folder


@pytest.fixture(scope="module")
def checkpoint_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's folder as a run leaves it, but for the moments."""
    folder = tmp_path_factory.mktemp("made") / "checkpoint-20"
    save_model(folder, make_model(), TOKENIZER_JSON)
    state = {"step": 20, "samples_consumed": 640, "history": [], "dataset_id": "ab" * 32}
    (folder / "training_state.json").write_text(json.dumps(state))
    seal(folder)
    return folder


@pytest.fixture
def checkpoint(checkpoint_files: Path, tmp_path: Path) -> Path:
    """A copy of it in a run's folder."""
    return shutil.copytree(checkpoint_files, tmp_path / "run" / "checkpoint-20")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    source = write_parquet(folder / "texts.parquet", make_texts(30))
    prepare_quietly(folder / "shards", source)
    return folder / "shards"


def inspect(folder: Path) -> dict[str, Any]:
    """What is printed as JSON; problems also end the command with 1."""
    code, output, errors = velocity("inspect", folder, "--json")
    assert output, errors
    found: dict[str, Any] = json.loads(output)
    assert code == bool(found["problems"])
    code, lines, _ = velocity("inspect", folder)
    assert lines.startswith(f"{folder}: {found['kind']}\n")
    for text in (*found["facts"].values(), *found["problems"], *found["use"]):
        assert text in lines
    return found


def test_a_checkpoint_says_what_it_is(checkpoint: Path) -> None:
    found = inspect(checkpoint)
    assert found["kind"] == "sealed checkpoint"
    assert found["problems"] == []
    assert found["facts"]["step"] == "20, after 640 samples"
    assert found["facts"]["set"] == f"dataset_id {'ab' * 32}"
    assert found["facts"]["model"] == "3 layers of width 64, 4 heads, context 128, 300 ids"
    assert found["facts"]["parameters"] == f"{CONFIG.num_parameters():,}"
    assert found["facts"]["weights"].startswith("model.safetensors, ")
    assert found["facts"]["weights"].endswith(" F32")
    assert found["facts"]["tokenizer"] == "BPE"
    assert found["facts"]["ids"] == "300"
    assert found["facts"]["special tokens"] == "<|endoftext|>"
    assert found["use"][0] == f"velocity sample --ckpt {checkpoint}"


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def unseal(folder: Path) -> None:
    (folder / "checksums.json").unlink()


def reseal_with(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """A change that the seal does not tell."""

    def apply(folder: Path) -> None:
        unseal(folder)
        change(folder)
        seal(folder)

    return apply


def write_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return reseal_with(change)


@pytest.mark.parametrize(
    ("change", "kind", "problem"),
    [
        (cut_weights, "sealed checkpoint", "model.safetensors: damaged; "),
        (unseal, "unfinished checkpoint of a run", "no checksums.json: it was not written"),
        (
            reseal_with(cut_weights),
            "sealed checkpoint",
            "model.safetensors: damaged or cut short (",
        ),
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            "sealed checkpoint",
            "tokenizer.json: missing, though checksums.json lists it",
        ),
        (
            reseal_with(lambda folder: (folder / "tokenizer.json").unlink()),
            "sealed checkpoint",
            "no tokenizer.json",
        ),
        (
            reseal_with(lambda folder: (folder / "tokenizer.json").write_text("[]")),
            "sealed checkpoint",
            "tokenizer.json: not a tokenizer",
        ),
        (
            reseal_with(lambda folder: (folder / "model.safetensors").unlink()),
            "sealed checkpoint",
            "no model.safetensors: there is a model's description, but no weights",
        ),
        (write_config(hidden_act="gelu"), "sealed checkpoint", "config.json: hidden_act is 'gelu'"),
        (
            write_config(hidden_act="gelu", mlp_bias=True),
            "sealed checkpoint",
            "config.json: mlp_bias is True",
        ),
        (
            write_config(intermediate_size=128),
            "sealed checkpoint",
            f"the weights have {CONFIG.num_parameters():,} parameters, config.json describes ",
        ),
        (
            write_config(vocab_size=299),
            "sealed checkpoint",
            "the tokenizer has 300 ids, the model 299",
        ),
        (
            reseal_with(lambda folder: (folder / "config.json").write_text("{")),
            "sealed checkpoint",
            "config.json: not JSON",
        ),
        (
            reseal_with(lambda folder: (folder / "training_state.json").write_text("{}")),
            "sealed checkpoint",
            "training_state.json: not the state of a run",
        ),
    ],
)
def test_what_is_missing_or_damaged_is_said(
    checkpoint: Path, change: Callable[[Path], object], kind: str, problem: str
) -> None:
    change(checkpoint)
    found = inspect(checkpoint)
    assert found["kind"] == kind
    assert any(told.startswith(problem) for told in found["problems"]), found["problems"]
    assert found["use"] == []


def test_int8_and_other_exports(checkpoint_files: Path, tmp_path: Path) -> None:
    (tmp_path / "int8").mkdir()
    write_int8(open_source(checkpoint_files), tmp_path / "int8", "", "int8")
    found = inspect(tmp_path / "int8")
    assert found["problems"] == []
    assert found["facts"]["kept as"] == "int8 (compressed-tensors, pack-quantized)"
    assert found["facts"]["parameters"] == f"{CONFIG.num_parameters():,}"
    (tmp_path / "onnx").mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(checkpoint_files / name, tmp_path / "onnx")
    (tmp_path / "onnx" / "certificate.json").write_text('{"format": "onnx", "measured": {}}')
    found = inspect(tmp_path / "onnx")
    assert (found["kind"], found["facts"]) == ("export for another runtime", {"format": "onnx"})


def test_a_tied_head_that_is_stored_counts_once(checkpoint_files: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint_files, tmp_path / "gpt")
    weights = load_file(folder / "model.safetensors")
    head = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": head}, folder / "model.safetensors")
    seal(folder)
    assert inspect(folder)["problems"] == []


def test_a_folder_from_elsewhere_in_shards(checkpoint_files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "it's"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(checkpoint_files / name, folder)
    weights = load_file(checkpoint_files / "model.safetensors")
    parts: dict[str, dict[str, torch.Tensor]] = {"a.safetensors": {}, "b.safetensors": {}}
    for number, (name, weight) in enumerate(weights.items()):
        parts[("a", "b")[number % 2] + ".safetensors"][name] = weight.to(torch.bfloat16)
    for name, part in parts.items():
        save_file(part, folder / name)
    index = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    found = inspect(folder)
    assert found["kind"] == "model folder from elsewhere"
    assert found["facts"]["weights"].startswith("2 files, ")
    assert found["facts"]["weights"].endswith(" BF16")
    assert found["use"][0] == "velocity sample --ckpt '" + str(folder).replace("'", "'\"'\"'") + "'"
    (folder / "b.safetensors").unlink()
    assert inspect(folder)["problems"] == ["b.safetensors: missing, though the index lists it"]
    index["x"] = "../a.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    [problem] = inspect(folder)["problems"]
    assert "not a list of tensors and their files" in problem


def test_the_originals_checkpoint(tmp_path: Path) -> None:
    write_seed_checkpoint(tmp_path / "old", make_model())
    found = inspect(tmp_path / "old")
    assert found["kind"] == "checkpoint of the original VelocityLM"
    assert found["facts"]["parameters"] == f"{CONFIG.num_parameters():,}"
    assert found["use"][-1] == f"velocity convert {tmp_path / 'old'} NEW"


def test_a_runs_folder(checkpoint: Path) -> None:
    run = checkpoint.parent
    shutil.copytree(checkpoint, run / "checkpoint-100")
    shutil.copytree(checkpoint, run / ".unfinished-checkpoint-120")
    (run / ".unfinished-checkpoint-120" / "checksums.json").unlink()
    (run / "best.json").write_text('{"step": 20, "validation_loss": 3.5}')
    found = inspect(run)
    assert found["kind"] == "folder of a run's checkpoints"
    assert found["facts"]["checkpoints"] == "2 complete, steps 20 to 100"
    assert found["facts"]["best"] == "step 20, validation loss 3.5"
    assert found["facts"][".unfinished-checkpoint-120"].startswith("not complete")
    assert found["problems"] == []
    assert f"velocity sample --ckpt {run}/best" in found["use"]
    assert f"velocity sample --ckpt {run} --all" in found["use"]
    cut_weights(checkpoint)
    (run / "best.json").write_text('{"step": 7}')
    problems = inspect(run)["problems"]
    assert problems[0].startswith("checkpoint-20: model.safetensors: damaged; ")
    assert problems[1] == "best.json: names step 7, which is not complete here"


def test_a_set_of_shards(shards: Path, tmp_path: Path) -> None:
    found = inspect(shards)
    assert found["kind"] == "set of shards"
    assert "documents, 1 shards" in found["facts"]["train"]
    assert (
        found["facts"]["dataset_id"]
        == json.loads((shards / "manifest.json").read_text())["dataset_id"]
    )
    assert (
        f"torchrun --nproc_per_node 1 -m train --config tiny data.shards={shards}" in found["use"]
    )
    damaged = shutil.copytree(shards, tmp_path / "damaged")
    path = next(damaged.glob("train-*.bin"))
    path.write_bytes(path.read_bytes()[:-2])
    (damaged / "tokenizer.json").unlink()
    problems = inspect(damaged)["problems"]
    assert problems[0] == "tokenizer.json: missing, though manifest.json lists it"
    assert problems[1].startswith(f"{path.name}: ")
    (damaged / "manifest.json").unlink()
    (damaged / ".prep").mkdir(exist_ok=True)
    found = inspect(damaged)
    assert found["kind"] == "unfinished set of shards"
    assert found["problems"][0].startswith("prep has not finished here")


def test_a_tokenizer_and_a_log(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(TOKENIZER_JSON)
    found = inspect(tmp_path / "tokenizer")
    assert (found["kind"], found["facts"]["ids"]) == ("tokenizer", "300")
    assert found["use"][0].startswith(f"velocity prep --tokenizer {tmp_path / 'tokenizer'} ")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.jsonl").write_text("{}\n")
    assert inspect(tmp_path / "logs")["use"] == [f"velocity report {tmp_path / 'logs'}"]
    found = inspect(tmp_path)
    assert found["facts"] == {"logs/": "log of a run", "tokenizer/": "tokenizer"}


def test_what_is_none_of_these_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.md").touch()
    for path, message in (
        (tmp_path, "neither a checkpoint .*; found readme.md"),
        (tmp_path / "readme.md", "a file; give the folder"),
        (tmp_path / "none", "no such folder"),
    ):
        with pytest.raises(ValueError, match=message):
            inspect_folder(path)


def test_grouped_heads_and_an_untied_head_are_counted(tmp_path: Path) -> None:
    config = replace(CONFIG, num_key_value_heads=2, tie_word_embeddings=False)
    save_model(tmp_path / "gpt", make_model(config), TOKENIZER_JSON)
    found = inspect(tmp_path / "gpt")
    assert found["problems"] == []
    assert "4 heads (2 of keys and values)" in found["facts"]["model"]
