"""A checkpoint folder is a Hugging Face model, says when it is whole, and runs no code."""

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from model.checkpoints.folder import load_model, save_model
from model.checkpoints.original import load_seed_model
from model.checkpoints.seal import (
    CheckpointError,
    find_checkpoint,
    is_seed_checkpoint,
    list_checkpoints,
    seal,
    verify,
)
from model.config import ModelConfig
from model.convert.older import convert
from model.transformer import Transformer
from tests.tiny import CONFIG, SENTENCES, TOKENIZER_JSON, make_model, make_tokenizer

TOKENS = torch.arange(40).view(2, 20)

TEXTS = (
    *SENTENCES,
    "",
    " ",
    "\n\n  \t indented\r\n",
    "<|endoftext|>",
    "one<|endoftext|>two <|endoftext|>",
    "it's  ,  don 't . we 've",  # What clean_up_tokenization_spaces would change.
    "Ünïcödé ﷽ 👩‍👩‍👧 \x00\x7f",
)


def write_checkpoint(folder: Path, config: ModelConfig = CONFIG, seed: int = 0) -> Transformer:
    model = make_model(config, seed)
    save_model(folder, model, TOKENIZER_JSON)
    seal(folder)
    return model


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; ... removes one."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def predict(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS)


def test_a_saved_model_loads_bit_for_bit(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.lm_head.weight.requires_grad
    assert torch.equal(predict(loaded), predict(model))


def test_a_loaded_model_does_not_depend_on_its_file(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path)
    loaded = load_model(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 0)
    assert torch.equal(predict(loaded), predict(model))


def test_a_model_loads_in_another_type(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path)
    loaded = load_model(tmp_path, "cpu", torch.bfloat16)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.model.norm.weight, model.model.norm.weight.bfloat16())


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, rope_theta=500000.0, layer_norm_eps=1e-3),
        replace(CONFIG, num_attention_heads=2, max_position_embeddings=64),
    ],
)
def test_transformers_computes_the_same_logits(tmp_path: Path, config: ModelConfig) -> None:
    model = write_checkpoint(tmp_path, config)
    llama = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        found = llama(TOKENS).logits
    torch.testing.assert_close(found, predict(model), atol=1e-4, rtol=0)
    assert llama.lm_head.weight is llama.model.embed_tokens.weight
    assert llama.dtype == torch.float32
    assert llama.config.max_position_embeddings == config.max_position_embeddings


def test_transformers_loads_the_same_generation_defaults(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    defaults = GenerationConfig.from_pretrained(tmp_path)
    assert (defaults.temperature, defaults.top_k, defaults.top_p) == (0.8, 50, 0.9)
    assert defaults.do_sample
    assert defaults.eos_token_id == defaults.bos_token_id == defaults.pad_token_id == 0


@pytest.mark.parametrize("text", TEXTS)
def test_transformers_makes_the_same_token_ids(tmp_path: Path, text: str) -> None:
    """Where text is only text; by default it writes <|endoftext|> where the text spells it."""
    write_checkpoint(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    expected = make_tokenizer().encode(text).ids
    assert tokenizer(text, split_special_tokens=True)["input_ids"] == expected
    if "<|endoftext|>" not in text:
        assert tokenizer(text)["input_ids"] == tokenizer.encode(text) == expected
    assert tokenizer.decode(expected) == text
    assert 0 not in expected


def test_transformers_knows_the_end_of_text(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.model_max_length == CONFIG.max_position_embeddings


def test_a_model_of_transformers_loads(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "ours")
    AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert torch.equal(predict(load_model(tmp_path / "theirs")), predict(model))


def test_names_lose_what_compile_and_ddp_add(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = {f"module._orig_mod.{name}": weight for name, weight in load_file(path).items()}
    save_file(weights, path)
    assert torch.equal(predict(load_model(tmp_path)), predict(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', expected 'llama'; velocity has no such mo"),
        ({"model_type": ...}, "model_type is missing, expected 'llama'; use the config.json of"),
        ({"num_key_value_heads": 3}, "model.num_key_value_heads is 3; expected a divisor"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"head_dim": 31}, "model.head_dim is 31; expected an even number"),
        ({"tie_word_embeddings": "no"}, "model.tie_word_embeddings is 'no'; expected one of True"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
        ({"rope_parameters": ..., "rope_scaling": {"type": "linear"}}, "model.rope_factor is None"),
        ({"rope_theta": 7.0}, "rope_theta is 7.0, expected 10000.0 as elsewhere; keep one of the"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config has quant_method None"),
        ({"hidden_size": ...}, "hidden_size is missing, expected a number; use the config.json of"),
        ({"hidden_size": "64"}, "model.hidden_size is '64'"),
    ],
)
def test_other_architectures_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_checkpoint(tmp_path)
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {message}")


def test_missing_keys_mean_what_transformers_takes_them_for(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    keys = ("rms_norm_eps", "rope_theta", "rope_parameters", "head_dim", "num_key_value_heads")
    edit_json(tmp_path / "config.json", **dict.fromkeys(keys, ...))
    loaded = load_model(tmp_path)
    assert (loaded.config.layer_norm_eps, loaded.config.rope_theta) == (1e-6, 10000.0)
    llama = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(predict(loaded), llama(TOKENS).logits, atol=1e-4, rtol=0)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    norm = "model.norm.weight"

    def refuse(weights: dict[str, torch.Tensor], message: str) -> None:
        save_file(weights, path)
        with pytest.raises(CheckpointError) as caught:
            load_model(tmp_path)
        assert str(caught.value).startswith(f"{path}: {message}")

    refuse({k: v for k, v in whole.items() if k != norm}, f"{norm} is missing, expected (64,); d")
    refuse(whole | {"model.bias": torch.ones(1)}, "model.bias is (1,), expected no such weight; a")
    refuse(whole | {norm: torch.ones(3)}, f"{norm} is (3,), expected (64,); download the folder")
    refuse(whole | {"lm_head.weight": torch.ones(300, 64)}, "lm_head.weight differs from")


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        load_model(tmp_path)
    write_checkpoint(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: not JSON"):
        load_model(tmp_path)


def test_a_tokenizer_that_does_not_fit_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no special token"):
        save_model(tmp_path, make_model(), '{"added_tokens": []}')
    other = json.dumps({"added_tokens": [{"content": "<|endoftext|>", "id": 300}]})
    with pytest.raises(ValueError, match="token 300, but the model's vocab_size is 300"):
        save_model(tmp_path, make_model(), other)


def test_verify_names_the_first_fault(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "added_later.txt").write_text("vouched for by nobody, in nobody's way")
    verify(tmp_path)
    flip_byte(tmp_path / "tokenizer.json")
    verify(tmp_path, ["config.json", "model.safetensors"])
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: damaged; its sha256"):
        verify(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 1000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged; 1,000 bytes"):
        verify(tmp_path, ["model.safetensors"])
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        verify(tmp_path)
    with pytest.raises(CheckpointError, match=r"added_later\.txt: not listed"):
        verify(tmp_path, ["added_later.txt"])


def test_sealing_again_takes_changes_in(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "training.json").write_text("{}")
    seal(tmp_path)
    listed = json.loads((tmp_path / "checksums.json").read_text())["files"]
    assert "training.json" in listed
    assert listed.keys() == {path.name for path in tmp_path.iterdir()} - {"checksums.json"}
    verify(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "a/b", "..", "/etc/passwd", "a\\b", ""])
def test_checksums_never_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path / "checkpoint-1")
    (tmp_path / "secret").write_text("")
    empty = {
        "bytes": 0,
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
    edit_json(tmp_path / "checkpoint-1" / "checksums.json", files={name: empty})
    with pytest.raises(CheckpointError, match="is not a plain file name"):
        verify(tmp_path / "checkpoint-1")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"files": []}', '{"files": {"a": 1}}', "\xff"]
)
def test_a_broken_list_of_checksums_is_a_checkpoint_error(tmp_path: Path, content: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "checksums.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"checksums\.json"):
        verify(tmp_path)


def test_checkpoints_are_listed_by_step(tmp_path: Path) -> None:
    for step in (5, 1000, 20):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    for name in ("checkpoint-7", "checkpoint-9.tmp", "checkpoint-", "run-1", "xcheckpoint-3"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-9.tmp" / "checksums.json").write_text("{}")
    (tmp_path / "checkpoint-8").write_text("a file")
    steps = [path.name for path in list_checkpoints(tmp_path)]
    assert steps == ["checkpoint-1000", "checkpoint-20", "checkpoint-5"]
    assert list_checkpoints(tmp_path / "missing") == []


def test_the_newest_undamaged_checkpoint_is_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (5, 10, 20):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-20"
    assert caplog.text == ""

    flip_byte(tmp_path / "checkpoint-20" / "model.safetensors")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    warning = caplog.text
    assert f"{tmp_path / 'checkpoint-20' / 'model.safetensors'}: damaged" in warning

    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(tmp_path / "checkpoint-20")
    assert "model.safetensors: damaged" in str(caught.value)
    assert str(caught.value).endswith(f"; the one before it is {tmp_path / 'checkpoint-10'}")

    for step in (5, 10):
        flip_byte(tmp_path / f"checkpoint-{step}" / "config.json")
    with pytest.raises(CheckpointError, match="all 3 checkpoints are damaged"):
        find_checkpoint(tmp_path)


def test_a_folder_from_elsewhere_needs_no_seal(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "checksums.json").unlink()
    assert find_checkpoint(tmp_path) == tmp_path


def test_no_checkpoint_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing: no such folder"):
        find_checkpoint(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="found nothing"):
        find_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(CheckpointError, match=r"found checkpoint-3, config\.json"):
        find_checkpoint(tmp_path)


def write_seed_checkpoint(folder: Path, model: Transformer) -> None:
    """As the original VelocityLM's trainer did."""
    folder.mkdir(parents=True)
    settings = {
        "model": asdict(model.config)
        | {
            "hidden_act": "silu",
            "use_cache": False,
            "attention_dropout": 0.0,
            "hidden_dropout": 0.0,
        },
        "training": {"fp16": True},
        "tokenizer": {"tokenizer_name": "gpt2", "add_special_tokens": True},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def test_seed_checkpoints_load_and_convert(tmp_path: Path) -> None:
    model = make_model()
    old, new = tmp_path / "checkpoint-5000", tmp_path / "converted"
    write_seed_checkpoint(old, model)
    assert is_seed_checkpoint(old)
    assert find_checkpoint(old) == old
    assert torch.equal(predict(load_seed_model(old)), predict(model))

    convert(old, new, TOKENIZER_JSON)
    verify(new)
    assert not is_seed_checkpoint(new)
    assert torch.equal(predict(load_model(new)), predict(model))
    with pytest.raises(ValueError, match="not empty"):
        convert(old, new, TOKENIZER_JSON)


def test_seed_checkpoints_in_the_old_pickle_format_load(tmp_path: Path) -> None:
    model = make_model()
    write_seed_checkpoint(tmp_path / "old", model)
    path = tmp_path / "old" / "pytorch_model.bin"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    assert torch.equal(predict(load_seed_model(tmp_path / "old")), predict(model))


class Malicious:
    """Pickled, it asks whoever loads it to make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_pickle_that_wants_to_run_code_does_not(tmp_path: Path, zip_format: bool) -> None:
    folder, target = tmp_path / "old", tmp_path / "made_by_the_pickle"
    write_seed_checkpoint(folder, make_model())
    path = folder / "pytorch_model.bin"
    weights = {"model.norm.weight": Malicious(target)}
    torch.save(weights, path, _use_new_zipfile_serialization=zip_format)
    with pytest.raises(CheckpointError) as caught:
        load_seed_model(folder)
    assert str(caught.value).startswith(f"{path}: asks to run code")
    assert "\n" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle at all", b"PK\x03\x04 half a zip"])
def test_broken_seed_weights_are_one_clear_error(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "old"
    write_seed_checkpoint(folder, make_model())
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: ") as caught:
        load_seed_model(folder)
    assert "\n" not in str(caught.value)


def test_a_truncated_seed_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    write_seed_checkpoint(folder, make_model())
    os.truncate(folder / "pytorch_model.bin", 5000)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: "):
        load_seed_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "model.hidden_act is 'gelu'; only 'silu' is supported"),
        ({"rope_theta": ...}, "no key model.rope_theta"),
        ({"num_attention_heads": 5}, "model.hidden_size is 64; expected a multiple"),
    ],
)
def test_other_seed_settings_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "old"
    write_seed_checkpoint(folder, make_model())
    section = json.loads((folder / "config.json").read_text())["model"] | changes
    edit_json(folder / "config.json", model={k: v for k, v in section.items() if v is not ...})
    with pytest.raises(CheckpointError) as caught:
        load_seed_model(folder)
    assert str(caught.value).startswith(f"{folder / 'config.json'}: {message}")
    shutil.rmtree(folder)
    assert not is_seed_checkpoint(folder)
