"""Hostile and damaged checkpoint folders: one line that names the file, soon, in little memory."""

import json
import os
import struct
import time
import zipfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints.folder import save_model
from model.checkpoints.hugging_face import Json
from model.checkpoints.original import load_seed_model
from model.checkpoints.seal import (
    MODEL_FILES,
    TRAINING_FILES,
    CheckpointError,
    find_checkpoint,
    seal,
)
from model.generate import load_generator
from tests.model.test_checkpoint_folder import edit_json, write_checkpoint, write_seed_checkpoint
from tests.tiny import CONFIG, TOKENIZER_JSON, make_model
from train.checkpoints.position import OPTIMIZER, RUN_CONFIG, TRAINING_STATE

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", make_model(), TOKENIZER_JSON)
    return tmp_path / "model"


def refuse(folder: Path, message: str) -> None:
    start = time.process_time()
    with pytest.raises(CheckpointError, match=message) as caught:
        load_generator(folder, "cpu")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers in .* is 10,000,000, which takes"),
        ({"num_hidden_layers": 1}, "holds 29 weights, but num_hidden_layers"),
        ({"hidden_size": 2**40, "head_dim": 2**38}, r"embed_tokens.weight is \(300, 64\)"),
        (
            {"hidden_size": 128, "head_dim": 32},
            r"\(300, 128\); set hidden_size to 64 in config.json",
        ),
        ({"hidden_size": 2 * 10**40, "head_dim": None}, "model.hidden_size is 2"),
        ({"intermediate_size": 2**45}, r"gate_proj.weight \(3\) is \(96, 64\), expected"),
        ({"vocab_size": 10**12}, "model.vocab_size is 1000000000000"),
        ({"vocab_size": 65536}, r"expected \(65536, 64\); set vocab_size to 300 in config.json"),
        ({"head_dim": 2**40}, r"4 differences, the first: .*q_proj.weight \(3\) is \(64, 64\)"),
        ({"head_dim": 10**17}, r"\(400000000000000000, 64\); set head_dim to 16 in config.json"),
        ({"num_key_value_heads": [2]}, "num_key_value_heads is "),
        ({"rope_scaling": {"type": "yarn", "factor": 10**400}}, "model.rope_factor is 1"),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "model.rope_factor is nan"),
        ({"rope_scaling": {"type": "x" * 10**6}}, "rope_type is 'xxx"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"rms_norm_eps": float("nan")}, "model.layer_norm_eps is nan"),
        ({"rms_norm_eps": float("inf")}, "model.layer_norm_eps is inf"),
        ({"rope_theta": 10**400, "rope_parameters": ...}, "model.rope_theta is 1"),
        ({"num_attention_heads": [4]}, "num_attention_heads is|num_key_value_heads is"),
        ({"hidden_size": True}, "model.hidden_size is True"),
        ({"model_type": "x" * 10**6}, "model_type is 'xxx"),
        ({"max_position_embeddings": float("nan")}, "max_position_embeddings is nan"),
    ],
)
def test_a_config_is_compared_with_the_weights_before_a_model_is_made(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit_json(folder / "config.json", **changes)
    refuse(folder, message)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [DEEP, "[" * 100_000, "[]", "1", "", "\xff", "1" * 5000])
def test_json_of_any_shape_is_one_line(folder: Path, name: str, content: str) -> None:
    (folder / name).write_bytes(content.encode("latin-1"))
    refuse(folder, name.replace(".", r"\."))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_files_far_too_large_are_not_read(folder: Path, name: str) -> None:
    os.truncate(folder / name, 2**40)  # Sparse: it takes no disk.
    refuse(folder, rf"{name}: 1,099,511,627,776 bytes; expected at most")


def test_a_tokenizer_of_any_shape_is_one_line(folder: Path) -> None:
    for content in (DEEP, "[]", TOKENIZER_JSON[:-200], '{"model": {"type": "BPE"}}'):
        (folder / "tokenizer.json").write_text(content)
        refuse(folder, r"tokenizer\.json: ")


def rewrite_header(path: Path, changes: dict[str, Any]) -> None:
    raw = path.read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:end])
    header["model.norm.weight"] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[end:])


@pytest.mark.parametrize(
    "changes",
    [
        {"data_offsets": [0, 256]},
        {"data_offsets": [10**12, 10**12 + 256]},
        {"data_offsets": [-256, 0]},
        {"data_offsets": [256, 0]},
        {"shape": [2**40]},
        {"shape": [2**40, 2**40]},
        {"dtype": "Q9"},
        {"dtype": "I32"},
    ],
)
def test_headers_that_lie_are_refused(folder: Path, changes: dict[str, Any]) -> None:
    rewrite_header(folder / "model.safetensors", changes)
    refuse(folder, r"model\.safetensors: (damaged|model.norm.weight holds (Q9|torch.int32);)")


@pytest.mark.parametrize("length", [2**60, 2**64 - 1, 2**24 + 1, 2**20, 0])
def test_header_lengths_that_lie_are_refused(folder: Path, length: int) -> None:
    with open(folder / "model.safetensors", "r+b") as file:
        file.write(struct.pack("<Q", length))
    refuse(folder, r"model\.safetensors: damaged")


def test_headers_of_strange_json_are_refused(folder: Path) -> None:
    for text in (DEEP, "[]", "", "\xff"):
        content = text.encode("latin-1")
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content)
        refuse(folder, r"model\.safetensors: damaged")


def test_names_that_become_one_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"module.model.norm.weight": torch.ones(64)}, path)
    refuse(folder, "two weights are named model.norm.weight")


def test_weights_in_several_files_are_never_followed(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(folder, r"safetensors\.index\.json: '\.\./outside\.safetensors' is not the name of a fi")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight_map": {"a": "/etc/passwd"}}, "'/etc/passwd' is not the name of a file beside"),
        ({"weight_map": {"a": "..\\x"}}, "is not the name of a file beside it"),
        ({"weight_map": {"a": ".."}}, "'..' is not the name of a file beside it"),
        ({"weight_map": {"a": "x\0y"}}, "is not the name of a file beside it"),
        (
            {"weight_map": {"a": "y" * 10**6}},
            "y' is not the name of a file beside it; not followed",
        ),
        ({"weight_map": {"a": 1}}, "has no weight_map of weights and their files"),
        ({"weight_map": []}, "has no weight_map of weights and their files"),
        ({}, "has no weight_map of weights and their files"),
        ({"weight_map": {}}, "lists 0 files, of which 0 are missing; download the folder again"),
        (
            {"weight_map": {"a": "config.json", "b": "gone.safetensors"}},
            "lists 2 files, of which 1 are missing, such as gone.safetensors; download the folder",
        ),
        ({"weight_map": {"a": "config.json"}}, r"config\.json: damaged; its header"),
        ({"weight_map": {"a": "tokenizer"}}, "lists 1 files, of which 1 are missing"),
    ],
)
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_indexes_that_lie_are_one_line(
    folder: Path, content: Json, message: str, kind: str
) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "tokenizer").mkdir()
    (folder / f"{kind}.index.json").write_text(json.dumps(content))
    refuse(folder, message)


def test_an_index_of_a_part_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    weights = load_file(folder / "part.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "part.safetensors")
    index = {"weight_map": dict.fromkeys([*weights, "model.norm.weight"], "part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(folder, r"part\.safetensors: model\.norm\.weight is missing, expected \(64,\); download")


class Payload:
    """What runs code in whoever unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/velocity-was-here",)


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("is_cut_up", [True, False])
def test_pickles_never_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, zip_format: bool, is_cut_up: bool
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(os, "system", ran.append)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "part.bin" if is_cut_up else "pytorch_model.bin"
    content = weights | {"payload": Payload()}
    torch.save(content, folder / name, _use_new_zipfile_serialization=zip_format)
    if is_cut_up:
        index = {"weight_map": dict.fromkeys(weights, name)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    refuse(folder, rf"{name}: asks to run code when loaded")
    assert not ran


def test_a_zip_that_grows_when_unpacked_is_refused(folder: Path) -> None:
    """torch stores numbers as they are, but unpacks what others have compressed."""
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(make_model().state_dict() | {"more": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as before:
        entries = {entry.filename: before.read(entry) for entry in before.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as after:
        for name, content in entries.items():
            after.writestr(name, content)
    refuse(
        folder, r"pytorch_model\.bin: would be 4,\d+,\d+ bytes once unpacked, more than the file"
    )


@pytest.mark.parametrize("seals", [True, False])
def test_checksums_of_other_types_are_one_line(folder: Path, seals: bool) -> None:
    if seals:
        seal(folder)
    entries: Iterable[Any] = (1, {"bytes": "9", "sha256": "x"}, {"bytes": 1, "sha256": 2}, {}, None)
    for entry in entries:
        (folder / "checksums.json").write_text(json.dumps({"files": {"config.json": entry}}))
        refuse(folder, r"checksums\.json: not a list of files")


@pytest.mark.parametrize("name", [TRAINING_STATE, OPTIMIZER, RUN_CONFIG])
def test_a_checkpoint_of_ours_without_its_seal_is_refused(folder: Path, name: str) -> None:
    assert name in TRAINING_FILES
    (folder / name).write_text("{}")
    refuse(folder, rf"without checksums\.json.* or copy {', '.join(MODEL_FILES)} to a new folder")
    seal(folder)
    assert load_generator(folder, "cpu").generate("one")


def test_what_is_left_of_a_removed_checkpoint_is_refused(tmp_path: Path) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-2" / "checksums.json").unlink()
    refuse(tmp_path / "checkpoint-2", "without checksums")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


def test_pickles_of_strange_tensors_are_one_line(tmp_path: Path) -> None:
    weights = make_model().state_dict()
    norm = "model.norm.weight"
    huge = {name: torch.zeros(1).expand(65536, 2**20) for name in weights}
    strange: Iterable[tuple[Any, str]] = (
        ({1: torch.zeros(2)}, "not a state dict"),
        ({**weights, 1: torch.zeros(2)}, "not a state dict"),
        ({"model": weights}, "not a state dict"),
        ([1], "not a state dict"),
        (weights | {norm: torch.zeros(64, device="meta")}, "not a state dict"),
        (weights | {norm: torch.zeros(64).to_sparse()}, "not a state dict"),
        (weights | {norm: torch.zeros(64, dtype=torch.int8)}, "holds torch.int8"),
        (huge, "its tensors take 7,971,459,301,376 bytes, more than the file has"),
    )
    for number, (content, message) in enumerate(strange):
        folder = tmp_path / str(number)
        write_seed_checkpoint(folder, make_model())
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin: .*{message}") as caught:
            load_seed_model(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zip_format", [True, False])
def test_damaged_pickles_are_one_line(tmp_path: Path, zip_format: bool) -> None:
    folder = tmp_path / "old"
    write_seed_checkpoint(folder, make_model())
    path = folder / "pytorch_model.bin"
    torch.save(make_model().state_dict(), path, _use_new_zipfile_serialization=zip_format)
    whole, num_refused = path.read_bytes(), 0
    for place in range(40, 1500, 23):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            load_seed_model(folder)
        except CheckpointError as error:
            num_refused += "\n" not in str(error)
    assert num_refused > 20


def test_a_seed_config_of_any_size_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    write_seed_checkpoint(folder, make_model())
    sizes = {"num_hidden_layers": 10**7, "hidden_size": 2**40, "intermediate_size": 2**45}
    for key, value in sizes.items():
        edit_json(folder / "config.json", model=asdict(CONFIG) | {key: value})
        refuse_seed = pytest.raises(CheckpointError, match=r"pytorch_model\.bin: ")
        with refuse_seed:
            load_seed_model(folder)
