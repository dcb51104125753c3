"""safetensors files: ours are the library's, byte for byte, and read and hashed in one pass."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints import tensor_file
from model.checkpoints.seal import CheckpointError, Sealed
from model.checkpoints.tensor_file import TensorReader, check_entries, write_tensors


def make_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "model.b": torch.randn(3, 5),
        "model.a.step": torch.tensor(7.0),
        'strange "é\n\x01': torch.randn(2, 2, dtype=torch.float16),
        "half": torch.randn(4, dtype=torch.bfloat16),
        "wide": torch.randn(3, dtype=torch.float64),
        "count": torch.arange(3),
        "generator": torch.get_rng_state(),
        "empty": torch.empty(0),
        "turned": torch.randn(4, 3).T,
    }


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_file_is_the_librarys_byte_for_byte(
    tmp_path: Path, metadata: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "CHUNK_BYTES", 16)
    tensors = make_tensors()
    sealed = write_tensors(tmp_path / "ours", tensors, metadata)
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(plain, tmp_path / "theirs", metadata)
    content = (tmp_path / "ours").read_bytes()
    assert content == (tmp_path / "theirs").read_bytes()
    assert sealed == Sealed(len(content), hashlib.sha256(content).hexdigest())
    for name, tensor in load_file(tmp_path / "ours").items():
        assert torch.equal(tensor, tensors[name])


def read(path: Path, sealed: Sealed, targets: dict[str, torch.Tensor]) -> None:
    with TensorReader(path, sealed) as reader:
        check_entries(path, reader.entries, targets)
        for entry in reader.entries:
            reader.read_into(targets[entry.name])
        reader.check()


@pytest.mark.parametrize("chunk_bytes", [16, 1 << 20])
def test_what_was_written_is_read(
    tmp_path: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "CHUNK_BYTES", chunk_bytes)
    tensors = {name: tensor.contiguous() for name, tensor in make_tensors().items()}
    sealed = write_tensors(tmp_path / "file", tensors)
    targets = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    read(tmp_path / "file", sealed, targets)
    assert [name for name in tensors if not torch.equal(tensors[name], targets[name])] == []


@pytest.mark.parametrize("place", [3, 20, 200, -100, -1])
def test_a_flipped_byte_is_found_wherever_it_is(tmp_path: Path, place: int) -> None:
    tensors = {"a": torch.randn(4, 5), "b": torch.randn(7)}
    sealed = write_tensors(tmp_path / "file", tensors)
    content = bytearray((tmp_path / "file").read_bytes())
    content[place] ^= 1
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match="file"):
        read(tmp_path / "file", sealed, {name: torch.zeros_like(t) for name, t in tensors.items()})


def test_a_file_that_ends_early_or_late_is_damaged(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(4, 5)}
    sealed = write_tensors(tmp_path / "file", tensors)
    content = (tmp_path / "file").read_bytes()
    for wrong in (content[:-1], content[:20], content[:4], content + b"x"):
        (tmp_path / "file").write_bytes(wrong)
        with pytest.raises(CheckpointError, match="file: damaged; "):
            read(tmp_path / "file", sealed, {"a": torch.zeros(4, 5)})


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"a": torch.zeros(5, 4)}, r"a is F32 of shape \(4, 5\), expected F32 of shape \(5, 4\)"),
        ({"a": torch.zeros(4, 5).half()}, "a is F32 of shape .*, expected F16"),
        ({"a": torch.zeros(4, 5), "b": torch.zeros(1)}, "no b; the file belongs to another model"),
        ({}, "unknown tensor a"),
    ],
)
def test_a_file_of_another_model_is_refused(
    tmp_path: Path, targets: dict[str, torch.Tensor], message: str
) -> None:
    sealed = write_tensors(tmp_path / "file", {"a": torch.randn(4, 5)})
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "file", sealed, targets)
