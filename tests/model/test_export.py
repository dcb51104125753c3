"""`velocity export`: what another runtime reads is the checkpoint, or nothing is left there."""

import json
import math
import multiprocessing
import os
import shutil
import signal
from collections import namedtuple
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import cli
from model import narrow
from model.checkpoints.folder import load_model, save_model
from model.checkpoints.kept_tokenizer import make_template
from model.checkpoints.seal import CheckpointError, is_sealed, seal, verify
from model.config import ModelConfig
from model.decode.settings import Settings
from model.export.certificate import Measured, cut_windows, find_faults, measure
from model.export.gguf import writer as gguf_format
from model.export.gguf.runtime import read_model
from model.export.ollama import make_modelfile
from model.export.onnx import open_session
from model.export.request import LIMITS, make_request
from model.export.run import export
from model.export.source import open_source
from model.generate import load_generator
from model.int8 import Int8Linear
from tests.model.test_go_template import CHATML
from tests.tiny import SENTENCES, TOKENIZER_JSON, make_model

# Of every shape that formats have to say in their own way: shared keys, heads of their own width,
# an untied head, a stretched context, and rows of the embedding that no token has.
CONFIG = ModelConfig(
    vocab_size=304,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=64,
    max_position_embeddings=64,
    initializer_range=0.15,
    tie_word_embeddings=False,
    rope_type="llama3",
    rope_factor=4.0,
    rope_original_max_position_embeddings=16,
)
BLOCK = "model.layers.0.mlp.up_proj"
TEXT = " ".join(SENTENCES) * 8
Usage = namedtuple("Usage", "total used free")


def save(folder: Path, config: ModelConfig = CONFIG) -> Path:
    save_model(folder, make_model(config), TOKENIZER_JSON)
    seal(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("export") / "checkpoint")


def run(checkpoint: Path, format: Any, out: Path, dtype: str | None = None) -> list[list[str]]:
    return export(
        make_request(checkpoint, format, out, dtype), TEXT, "sentences", lambda line: None
    )


def read_certificate(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1"])
def test_gguf_is_written_in_every_type_and_certified(
    checkpoint: Path, tmp_path: Path, dtype: str
) -> None:
    gguf = pytest.importorskip("gguf")
    out = tmp_path / "model.gguf"
    run(checkpoint, "gguf", out, dtype)
    assert {path.name for path in tmp_path.iterdir()} == {out.name, f"{out.name}.certificate.json"}
    certificate = read_certificate(tmp_path / f"{out.name}.certificate.json")
    measured = Measured(**certificate["measured"])
    assert find_faults(measured, LIMITS[dtype]) == []
    assert measured.num_tokens > 200
    assert (measured.max_difference < 1e-4) == (dtype == "fp32")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    expected = {"fp32": "F32", "fp16": "F16"}.get(dtype, dtype.upper())
    assert kinds["blk.0.ffn_up.weight"] == expected
    assert kinds["output_norm.weight"] == "F32"


def test_transformers_reads_the_gguf_file_as_the_checkpoint(tmp_path: Path) -> None:
    """A reader that shares no line with ours, on the shapes that it knows."""
    from transformers import AutoModelForCausalLM

    config = ModelConfig(
        **(vars(CONFIG) | {"rope_type": "default", "head_dim": None} | UNSTRETCHED)
    )
    checkpoint = save(tmp_path / "checkpoint", config)
    run(checkpoint, "gguf", tmp_path / "model.gguf", "fp32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    source = open_source(checkpoint)
    [tokens, *_] = cut_windows(source.tokenizer.encode(TEXT).ids, 64)
    with torch.inference_mode():
        found = theirs(tokens).logits
    torch.testing.assert_close(found, source.compute(tokens), atol=1e-4, rtol=1e-4)


UNSTRETCHED = {"rope_factor": None, "rope_original_max_position_embeddings": None}


def test_llama_cpp_writes_the_same_tokens(checkpoint: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip(
        "llama_cpp", reason="llama-cpp-python is not installed; it is built from C++"
    )
    out = tmp_path / "model.gguf"
    run(checkpoint, "gguf", out, "fp32")
    model = llama_cpp.Llama(str(out), n_ctx=64, verbose=False)
    generator = load_generator(checkpoint, "cpu")
    prompt = "The quick brown"
    tokens = generator.tokenizer.encode(prompt).ids
    [greedy] = generator.complete([prompt], Settings(temperature=0, max_new_tokens=30))
    found = [*islice(model.generate(tokens, temp=0.0), 30)]
    assert (*tokens, *found) == greedy.tokens


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_stretched_context_is_in_the_keys_of_the_file(tmp_path: Path, kind: Any) -> None:
    changes: dict[str, Any] = {"rope_type": kind, "tie_word_embeddings": True}
    if kind == "yarn":
        changes["rope_attention_factor"] = 0.9
    else:
        changes["rope_original_max_position_embeddings"] = None
    checkpoint = save(tmp_path / "checkpoint", ModelConfig(**(vars(CONFIG) | changes)))
    run(checkpoint, "gguf", tmp_path / "model.gguf", "fp32")
    config = read_model(tmp_path / "model.gguf").config
    assert (config.rope_type, config.rope_factor) == (kind, 4.0)
    assert config.tie_word_embeddings


@pytest.mark.parametrize("told", [0.9, None])
def test_yarns_factor_means_to_llama_cpp_what_it_is(tmp_path: Path, told: float | None) -> None:
    """The key itself, as our own reader of the file would undo what our writer did to it.

    llama.cpp multiplies rotated vectors by attn_factor, which is 1 where the file has none, and by
    1 + 0.1 ln(1 / freq_scale), where freq_scale is 1 / factor (ggml: rope_yarn).
    """
    gguf = pytest.importorskip("gguf")
    changes: dict[str, Any] = {"rope_type": "yarn", "rope_attention_factor": told}
    checkpoint = save(tmp_path / "checkpoint", ModelConfig(**(vars(CONFIG) | changes)))
    run(checkpoint, "gguf", tmp_path / "model.gguf", "fp32")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    key, factor = (
        reader.get_field(f"llama.rope.scaling.{name}") for name in ("attn_factor", "factor")
    )
    given = 1.0 if key is None else key.contents()
    freq_scale = 1 / factor.contents()
    expected = 0.9 if told is not None else 0.1 * math.log(4) + 1
    assert given * (1 + 0.1 * math.log(1 / freq_scale)) == pytest.approx(expected, rel=1e-6)


def test_a_wrong_export_is_told_and_not_kept(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of queries and keys in the checkpoint's order: the classic silent mistake."""
    monkeypatch.setattr(
        gguf_format, "arrange", lambda name, tensor, config: tensor.detach().float().numpy()
    )
    with pytest.raises(ValueError, match=r"not kept, as .* reads another model from it: KL"):
        run(checkpoint, "gguf", tmp_path / "model.gguf", "fp32")
    assert [*tmp_path.iterdir()] == []


def test_a_checkpoint_that_diverged_is_told_as_such(tmp_path: Path) -> None:
    model = make_model(CONFIG)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    save_model(tmp_path / "checkpoint", model, TOKENIZER_JSON)
    with pytest.raises(ValueError, match="its own loss on the text is nan: training diverged"):
        run(tmp_path / "checkpoint", "gguf", tmp_path / "model.gguf", "fp32")


def die_while_writing(checkpoint: Path, out: Path) -> None:
    def write(source: Any, folder: Path, name: str, dtype: str) -> Path:
        (folder / name).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
        return folder / name

    gguf_format.write = write
    run(checkpoint, "gguf", out)


def test_a_killed_export_leaves_nothing_at_its_place(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    process = multiprocessing.get_context("fork").Process(
        target=die_while_writing, args=(checkpoint, out)
    )
    process.start()
    process.join(400)
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()
    assert len([*tmp_path.iterdir()]) == 1  # What it had begun, which the next one removes.
    run(checkpoint, "gguf", out)
    assert {path.name for path in tmp_path.iterdir()} == {out.name, f"{out.name}.certificate.json"}


def test_of_two_exports_to_one_place_the_second_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, out = gguf_format.write, tmp_path / "model.gguf"
    (tmp_path / ".model.gguf.partial" / "made").mkdir(parents=True)  # Of one that was killed.

    def write_twice(*arguments: Any) -> Path:
        monkeypatch.setattr(gguf_format, "write", write)
        with pytest.raises(ValueError, match=f"{out}: another export is being made there"):
            run(checkpoint, "gguf", out)
        return write(*arguments)

    monkeypatch.setattr(gguf_format, "write", write_twice)
    run(checkpoint, "gguf", out)
    assert {path.name for path in tmp_path.iterdir()} == {out.name, f"{out.name}.certificate.json"}


def test_nothing_is_overwritten_and_a_small_disk_is_told_before(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken.gguf"
    taken.write_text("mine")
    with pytest.raises(ValueError, match="is there already; name a new place with --out"):
        run(checkpoint, "gguf", taken)
    assert taken.read_text() == "mine"
    certificate = tmp_path / "gone.gguf.certificate.json"
    certificate.symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"gone\.gguf\.certificate\.json: is there already; name a"
    ):
        run(checkpoint, "gguf", tmp_path / "gone.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {taken.name, certificate.name}
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 10**9, 10**6))
    with pytest.raises(
        ValueError, match=r"about 67 MB of disk are needed in .*, and 1 MB are free"
    ):
        run(checkpoint, "gguf", tmp_path / "new.gguf")


@pytest.mark.parametrize("late", ["model.gguf", "model.gguf.certificate.json"])
def test_what_comes_to_its_place_meanwhile_is_not_overwritten(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    write = gguf_format.write

    def write_slowly(*arguments: Any) -> Path:
        (tmp_path / late).write_text("another's")
        return write(*arguments)

    monkeypatch.setattr(gguf_format, "write", write_slowly)
    with pytest.raises(ValueError, match=f"{late}: is there already; name a new place with --out"):
        run(checkpoint, "gguf", tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == [late]
    assert (tmp_path / late).read_text() == "another's"


def test_ollama_gets_a_folder_that_says_how_to_go_on_with_a_text(
    checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ollama"
    run(checkpoint, "ollama", out)
    assert {path.name for path in out.iterdir()} == {"model.gguf", "Modelfile", "certificate.json"}
    assert (out / "Modelfile").read_text().splitlines() == [
        "FROM ./model.gguf",
        'TEMPLATE "{{ .Prompt }}"',
        'PARAMETER stop "<|endoftext|>"',
        "PARAMETER num_ctx 64",
    ]


def test_a_chat_template_is_translated_or_said_not_to_be(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    (folder / "checksums.json").unlink()
    (folder / "chat_template.jinja").write_text(CHATML)
    made = make_modelfile(open_source(folder))
    user = "<|im_start|>user\n{{ .Content }}<|im_end|>\n<|im_start|>assistant\n"
    assert f'{{{{ if eq .Role "user" }}}}{user}' in made
    assert 'PARAMETER stop """<|im_end|>\n<|im_start|>user"""' in made  # No token of this model.
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    made = make_modelfile(open_source(folder))
    assert 'TEMPLATE "{{ .Prompt }}"' in made
    assert "chat template is not known" in made


def test_a_chat_template_is_exported_wherever_serving_finds_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    (folder / "checksums.json").unlink()
    path = folder / "tokenizer_config.json"
    named = [{"name": "tool", "template": "no"}, {"name": "default", "template": CHATML}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": named}))
    run(folder, "gguf", tmp_path / "model.gguf", "fp32")
    found: Any = gguf.GGUFReader(tmp_path / "model.gguf").get_field("tokenizer.chat_template")
    # llama.cpp knows no tag `generation`.
    assert found.contents() == CHATML.replace("endgeneration", "endif").replace(
        "generation %", "if true %"
    )
    assert "{{ range .Messages }}" in make_modelfile(open_source(folder))
    (folder / "chat_template.jinja").write_bytes(b"{{ '\xe9' }}")  # Which comes first.
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: is not UTF-8"):
        run(folder, "ollama", tmp_path / "ollama")
    assert not (tmp_path / "ollama").exists()


@pytest.mark.parametrize("name", ["chat_template.jinja", "special_tokens_map.json"])
def test_a_link_out_of_the_folder_is_not_copied(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    (folder / name).symlink_to(Path(__file__))
    with pytest.raises(CheckpointError, match=f"{name}: a link that leaves the folder, which is"):
        run(folder, "gguf", tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("generation_config.json", {"eos_token_id": [0, 304]}),
        ("generation_config.json", {"bos_token_id": 304}),
        ("tokenizer.json", {"post_processor": make_template("<|endoftext|>", 9999)}),
        ("tokenizer.json", {"added_tokens": []}),  # Too many, below.
    ],
)
def test_ids_that_the_model_has_not_are_one_line(
    checkpoint: Path, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    (folder / "checksums.json").unlink()
    path = folder / name
    content = json.loads(path.read_text())
    if "added_tokens" in changes:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        ids = range(300, 305)
        more = [{"id": n, "content": f"new {n}", "special": True, **flags} for n in ids]
        changes = {"added_tokens": content["added_tokens"] + more}
    path.write_text(json.dumps(content | changes))
    with pytest.raises(CheckpointError, match=r"name ids up to (304|9999), and the model has 304;"):
        run(folder, "ollama", tmp_path / "ollama")


def test_an_end_without_a_token_is_no_stop(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    (folder / "checksums.json").unlink()
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [0, 302]}))
    stops = [line for line in make_modelfile(open_source(folder)).splitlines() if "stop" in line]
    assert stops == ['PARAMETER stop "<|endoftext|>"']


def test_onnx_takes_a_past_and_rows_of_unequal_lengths(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "onnx"
    run(checkpoint, "onnx", out)
    certificate = read_certificate(out / "certificate.json")
    assert "onnxruntime" in certificate["runtime"]
    assert certificate["measured"]["max_difference"] < 1e-4
    assert (out / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()
    session: Any = open_session(out)
    source = open_source(checkpoint)
    long, short = torch.arange(5, 16), torch.arange(40, 46)
    filled = torch.stack([long, torch.cat([torch.zeros(5, dtype=torch.int64), short])])
    mask = torch.ones(2, 11, dtype=torch.int64)
    mask[1, :5] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    past = np.zeros((2, 2, 0, 16), np.float32)
    feed = {
        "input_ids": filled.numpy(),
        "attention_mask": mask.numpy(),
        "position_ids": positions.numpy(),
        "past_key_values.0.key": past,
        "past_key_values.0.value": past,
    }
    logits, keys, values = session.run(None, feed)
    for row, tokens in enumerate((long, short)):
        expected = source.compute(tokens[None])[0]
        found = torch.from_numpy(logits[row, -len(tokens) :])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # Both go on from there with one token each.
    feed = {
        "input_ids": np.array([[7], [8]]),
        "attention_mask": np.concatenate([mask.numpy(), np.ones((2, 1), np.int64)], 1),
        "position_ids": np.array([[11], [6]]),
        "past_key_values.0.key": keys,
        "past_key_values.0.value": values,
    }
    logits = session.run(None, feed)[0]
    for row, tokens in enumerate((long, short)):
        whole = torch.cat([tokens, torch.tensor([7 + row])])
        found = torch.from_numpy(logits[row, -1])
        torch.testing.assert_close(found, source.compute(whole[None])[0, -1], atol=1e-4, rtol=1e-4)


def test_pt2_is_compiled_loaded_and_compared(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler here")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    run(checkpoint, "pt2", tmp_path / "model.pt2")
    certificate = read_certificate(tmp_path / "model.pt2.certificate.json")
    assert "AOTInductor" in certificate["runtime"]
    assert certificate["measured"]["max_difference"] < 1e-4


def test_pt2_without_a_compiler_is_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nonexistent",))
    with pytest.raises(ValueError, match="there is no compiler; install g\\+\\+ or clang"):
        run(checkpoint, "pt2", tmp_path / "model.pt2")
    assert [*tmp_path.iterdir()] == []


def test_int8_is_a_checkpoint_that_sampling_takes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "int8"
    run(checkpoint, "int8", out)
    assert is_sealed(out)
    verify(out)
    with safe_open(out / "model.safetensors", framework="pt") as file:
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert dtypes["model.layers.0.mlp.up_proj.weight_packed"] == torch.int32
    assert dtypes["model.embed_tokens.weight"] == dtypes["lm_head.weight"] == torch.float16
    generator = load_generator(out, "cpu")
    layers = [m for m in generator.model.modules() if isinstance(m, Int8Linear)]
    assert len(layers) == 7
    assert {layer.weight.dtype for layer in layers} == {torch.int8}
    [text] = generator.generate("The quick brown fox", temperature=0, max_new_tokens=8)
    assert text.startswith("The quick brown fox")
    monkeypatch.setattr(narrow, "find_library", lambda: None)  # Without a compiler, they are fp32.
    widened = load_generator(out, "cpu")
    assert not any(isinstance(module, Int8Linear) for module in widened.model.modules())
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        found, expected = widened.model(tokens), generator.model(tokens)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_transformers_reads_the_int8_folder(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    run(checkpoint, "int8", tmp_path / "int8")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "int8", dtype=torch.float32)
    ours = load_generator(tmp_path / "int8", "cpu").model
    tokens = torch.arange(3, 43)[None]
    with torch.inference_mode():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "float-quantized", "velocity reads int8 weights where it is 'pack-quantized'"),
        ("ignore", [], r"quantization_config has ignore \[\]"),
        ("config_groups", {}, "config_groups {}; expected one"),
    ],
)
def test_other_quantized_folders_are_refused_by_name(
    checkpoint: Path, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    folder = write_unsealed(checkpoint, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("layer", "name", "tensor", "message"),
    [
        (BLOCK, "weight_shape", torch.tensor([64, 99]), "do not fit a weight of"),
        (BLOCK, "weight_scale", torch.ones(3, 1), "and 3 scales, which do not fit"),
        (BLOCK, "weight_scale", None, "is not of a block, or without its weight_scale"),
        ("lm_head", "weight_packed", torch.zeros(1, 1, dtype=torch.int32), "is not of a block"),
        (BLOCK, "weight_shape", torch.tensor([64, 31]), r"is \(64, 31\), expected \(64, 32\)"),
        (BLOCK, "weight_packed", torch.zeros(64, 8), "has torch.float32 of shape"),
    ],
)
def test_int8_weights_that_do_not_fit_are_refused(
    checkpoint: Path, tmp_path: Path, layer: str, name: str, tensor: Tensor | None, message: str
) -> None:
    folder = write_unsealed(checkpoint, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights.pop(f"{layer}.{name}", None)
    if tensor is not None:
        weights[f"{layer}.{name}"] = tensor
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def write_unsealed(checkpoint: Path, folder: Path) -> Path:
    """An int8 folder whose files may be changed."""
    run(checkpoint, "int8", folder / "int8")
    (folder / "int8" / "checksums.json").unlink()
    return folder / "int8"


def test_an_int8_folder_is_not_exported_again(checkpoint: Path, tmp_path: Path) -> None:
    run(checkpoint, "int8", tmp_path / "int8")
    with pytest.raises(ValueError, match="export the checkpoint it was made from"):
        run(tmp_path / "int8", "int8", tmp_path / "again")


def test_the_command_prints_what_was_measured(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    words = ["export", "--ckpt", str(checkpoint), "--format", "gguf", "--out", str(out)]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    assert "same likeliest token" in result.output
    assert read_certificate(Path(f"{out}.certificate.json"))["text"] == "Python's documentation"


@pytest.mark.parametrize(
    ("format", "out", "dtype", "message"),
    [
        ("gguf", "model.gguf", "int8", "expected one of fp16, fp32, bf16, q8_0"),
        ("gguf", "model.bin", None, "expected a file whose name ends with .gguf"),
        ("onnx", "model", "q4_0", "expected one of fp32"),
    ],
)
def test_what_a_format_has_not_is_refused(
    format: Any, out: str, dtype: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_request(Path("checkpoint"), format, Path(out), dtype)


def test_the_measures_are_those_of_the_definitions() -> None:
    ours = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]]])
    theirs = torch.tensor([[[0.0, 1.5], [0.0, 2.0], [0.0, 0.0]]])
    tokens = torch.tensor([[0, 1, 0]])
    measured = measure(lambda _: ours, lambda _: theirs, [tokens])
    p, q = ours.softmax(-1)[0], theirs.softmax(-1)[0]
    kl = sum(float((p[t] * (p[t] / q[t]).log()).sum()) for t in range(3)) / 3
    loss = -float(p[0, 1].log() + p[1, 0].log()) / 2
    changed = -float(q[0, 1].log() + q[1, 0].log()) / 2
    assert measured.max_difference == pytest.approx(2.0)
    assert measured.kl == pytest.approx(kl, rel=1e-5)
    assert measured.agreement == measured.near_agreement == pytest.approx(2 / 3)
    assert measured.loss == pytest.approx(loss, rel=1e-5)
    assert measured.loss_change == pytest.approx(changed - loss, rel=1e-5)


def test_a_token_nearly_as_likely_is_counted_apart() -> None:
    ours = torch.tensor([[[0.0, 0.05, -1.0], [0.0, 0.5, -1.0]]])
    theirs = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    measured = measure(lambda _: ours, lambda _: theirs, [torch.tensor([[0, 1]])])
    assert (measured.agreement, measured.near_agreement) == (0.0, 0.5)


def test_a_nan_is_past_every_limit() -> None:
    def broken(tokens: Tensor) -> Tensor:
        return torch.full((1, tokens.shape[1], 4), float("nan"))

    measured = measure(lambda t: torch.zeros(1, t.shape[1], 4), broken, [torch.tensor([[0, 1, 2]])])
    assert len(find_faults(measured, LIMITS["q4_0"])) >= 2
    assert measured.max_difference == float("inf")
