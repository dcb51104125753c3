"""How commands load a checkpoint: --device, --dtype and --base reach the model."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.adapters.base import ADAPTER_BASE, Base, hash_base
from model.adapters.config import AdapterConfig
from model.adapters.files import name_adapter
from model.adapters.layers import add_adapter
from model.adapters.peft_config import make_peft_config
from model.checkpoints.folder import encode_json, save_model, write_weights
from model.checkpoints.seal import ADAPTER_CONFIG, ADAPTER_WEIGHTS, seal
from model.sample.options import Loading
from tests.commands import velocity
from tests.tiny import TOKENIZER_JSON, make_model


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter whose base is no longer where it was: it is in `moved` now."""
    base, config, folder = tmp_path / "base", AdapterConfig(rank=2), tmp_path / "adapter"
    save_model(base, make_model(), TOKENIZER_JSON)
    seal(base)
    model = make_model()
    add_adapter(model, config)
    folder.mkdir()
    write_weights(folder / ADAPTER_WEIGHTS, name_adapter(model))
    tied = model.config.tie_word_embeddings
    (folder / ADAPTER_CONFIG).write_bytes(encode_json(make_peft_config(config, str(base), tied)))
    (folder / ADAPTER_BASE).write_bytes(Base(str(base), hash_base(base)).describe())
    shutil.move(base, tmp_path / "moved")
    return folder


def sample(adapter: Path, *more: object) -> tuple[int, str, str]:
    words = ("--prompt", "the one", "--temperature", 0, "--max-new-tokens", 3)
    return velocity("sample", "--ckpt", adapter, *words, *more)


def evaluate(adapter: Path, *more: object) -> tuple[int, str, str]:
    (adapter.parent / "text.txt").write_text("the one and the other\n" * 9)
    return velocity("eval", "--ckpt", adapter, "--text", adapter.parent / "text.txt", *more)


@pytest.mark.parametrize("command", [sample, evaluate])
def test_a_base_that_was_moved_is_named(
    adapter: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, errors = command(adapter)
    assert (code, "--base" in errors) == (1, True), errors
    code, output, errors = command(adapter, "--base", adapter.parent / "moved")
    assert code == 0, errors
    assert output


def test_the_options_are_those_of_the_model(adapter: Path) -> None:
    load = Loading("cpu", "int8", adapter.parent / "moved").make_load()
    generator = load(adapter)
    model = generator.model
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert any(tensor.dtype == torch.int8 for tensor in tensors)
