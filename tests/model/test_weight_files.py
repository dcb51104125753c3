"""Weights in one file or several, of any kind and dtype: read once, and written as others do."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from model.checkpoints.compare import list_shapes
from model.checkpoints.folder import load_model, name_weights, save_model
from model.checkpoints.seal import CheckpointError, find_checkpoint, seal, verify_model
from model.config import ModelConfig
from model.generate import load_generator
from model.transformer import Transformer
from tests.commands import velocity
from tests.model.test_checkpoint_folder import edit_json, flip_byte
from tests.runs import read_metrics, run_small
from tests.tiny import CONFIG, TOKENIZER_JSON, make_model

UNTIED = replace(CONFIG, num_key_value_heads=2, tie_word_embeddings=False)
TOKENS = torch.arange(1, 60)[None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", make_model(UNTIED), TOKENIZER_JSON)
    return tmp_path / "model"


def predict(model: Transformer) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(TOKENS)
    return logits


def write_files(folder: Path, files: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put these files of weights into a folder in place of its own, with an index."""
    (folder / "model.safetensors").unlink()
    for name, weights in files.items():
        if name.endswith(".bin"):
            torch.save(weights, folder / name)
        else:
            save_file(dict(weights), folder / name)
    index = "pytorch_model.bin.index.json" if name.endswith(".bin") else "model.safetensors.index."
    places = {weight: name for name, weights in files.items() for weight in weights}
    path = folder / index.replace("index.", "index.json") if index.endswith(".") else folder / index
    path.write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_weights_in_several_files_are_put_together(folder: Path, suffix: str) -> None:
    expected = predict(load_model(folder))
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {f"part-{n}.{suffix}": {name: weights[name] for name in names[n::3]} for n in range(3)}
    write_files(folder, parts)
    assert torch.equal(predict(load_model(folder)), expected)
    assert load_generator(folder, "cpu").generate("one", seed=1)


def test_what_transformers_cut_up_is_put_together(folder: Path, tmp_path: Path) -> None:
    llama: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(folder)
    llama.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 3
    assert torch.equal(predict(load_model(tmp_path / "theirs")), predict(load_model(folder)))


def test_large_weights_are_cut_up_as_transformers_does(folder: Path, tmp_path: Path) -> None:
    model, ours = load_model(folder), tmp_path / "ours"
    save_model(ours, model, TOKENIZER_JSON, max_file_bytes=60_000)
    names = sorted(path.name for path in ours.glob("model*"))
    assert names[0] == f"model-00001-of-{len(names) - 1:05}.safetensors"
    assert names[-1] == "model.safetensors.index.json"
    sizes = [(ours / name).stat().st_size for name in names[:-1]]
    assert max(sizes) > 64 * 300 * 4  # The embedding alone is larger than a file may be.
    assert sorted(sizes)[-3] < 62_000
    llama: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(ours)
    with torch.no_grad():
        torch.testing.assert_close(llama(TOKENS).logits, predict(model), atol=1e-4, rtol=0)
    assert torch.equal(predict(load_model(ours)), predict(model))
    seal(ours)
    assert find_checkpoint(ours) == ours
    flip_byte(ours / names[1])
    with pytest.raises(CheckpointError, match=rf"{names[1]}: damaged; its sha256"):
        verify_model(ours)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_any_type_become_the_one_asked_for(
    folder: Path, stored: torch.dtype, kind: str
) -> None:
    before = name_weights(load_model(folder))
    file = f"part.{kind}"
    write_files(folder, {file: {name: weight.to(stored) for name, weight in before.items()}})
    for wanted in (torch.float32, torch.bfloat16):
        found = name_weights(load_model(folder, "cpu", wanted))
        assert found.keys() == before.keys()
        for name, weight in found.items():
            assert torch.equal(weight, before[name].to(stored).to(wanted)), name
            assert weight.is_contiguous()


def test_a_pickle_of_views_is_read_as_what_they_show(folder: Path) -> None:
    """As of a model whose weights lie in one block of memory; each gets its own."""
    before = name_weights(load_model(folder))
    block = torch.cat([weight.flatten() for weight in before.values()])
    pieces = block.split([weight.numel() for weight in before.values()])
    views = {
        name: piece.view(weight.shape)
        for (name, weight), piece in zip(before.items(), pieces, strict=True)
    }
    write_files(folder, {"pytorch_model.bin": views})
    for name, weight in name_weights(load_model(folder)).items():
        assert torch.equal(weight, before[name])
        assert weight.untyped_storage().nbytes() == weight.nbytes


def test_links_of_the_hub_s_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    """A snapshot is a folder of links to ../../blobs/<hash>."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("0" * 40)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert load_generator(snapshot, "cpu").generate("one", seed=1)


def test_frequencies_that_older_releases_saved_are_passed_over(folder: Path) -> None:
    expected = predict(load_model(folder))
    weights = load_file(folder / "model.safetensors")
    for layer in range(3):
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(weights, folder / "model.safetensors")
    assert torch.equal(predict(load_model(folder)), expected)


def test_a_tied_head_may_be_there_too(tmp_path: Path) -> None:
    model = make_model()
    save_model(tmp_path, model, TOKENIZER_JSON)
    write_files(tmp_path, {"pytorch_model.bin": model.state_dict()})
    loaded = load_model(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(predict(loaded), predict(model))


def test_a_head_that_config_json_misjudges_has_a_remedy(folder: Path, tmp_path: Path) -> None:
    edit_json(folder / "config.json", tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"differs from .*; set tie_word_embeddings to false"):
        load_model(folder)
    save_model(tmp_path / "tied", make_model(), TOKENIZER_JSON)
    edit_json(tmp_path / "tied" / "config.json", tie_word_embeddings=...)
    with pytest.raises(CheckpointError, match=r"lm_head.* is missing.* set tie_word_embeddings to"):
        load_model(tmp_path / "tied")


def test_everything_that_differs_is_told_at_once(folder: Path) -> None:
    edit_json(
        folder / "config.json", attention_bias=True, hidden_act="gelu\nx", rope_scaling={"type": 1}
    )
    code, _, errors = velocity("sample", "--ckpt", folder, "--prompt", "one")
    assert code == 1
    first, head, *rows = errors.splitlines()
    assert first.startswith("velocity: ")
    assert "config.json: 3 differences, the first: hidden_act is 'gelu\\nx', expected" in first
    assert head.split() == ["found", "expected", "what", "to", "do"]
    assert [row.split()[0] for row in rows] == ["hidden_act", "attention_bias", "rope_type"]
    assert len({row.index("velocity has no such models") for row in rows}) == 1


def test_weights_that_differ_are_a_row_for_all_layers(folder: Path) -> None:
    edit_json(folder / "config.json", num_key_value_heads=4, intermediate_size=48, vocab_size=301)
    with pytest.raises(
        CheckpointError, match=r"7 differences, the first: model\.embed_tok"
    ) as caught:
        load_model(folder)
    rows = caught.value.__notes__[1:]
    assert len(rows) == 7
    assert rows[0].endswith("set vocab_size to 300 in config.json, if the weights are right")
    [keys] = [row for row in rows if "k_proj" in row]
    assert keys.split("  ")[0] == "model.layers.*.self_attn.k_proj.weight (3)"
    assert "(32, 64)" in keys
    assert "set num_key_value_heads to 2 in config.json" in keys
    many = {f"extra.{n}": torch.ones(1) for n in range(24)}
    weights = load_file(folder / "model.safetensors")
    save_file(weights | many, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert caught.value.__notes__[-1] == "... and 11 more"


@pytest.mark.parametrize(
    "config", [CONFIG, UNTIED, replace(CONFIG, head_dim=24), ModelConfig(9, 4, 1, 1, 3, 5)]
)
def test_expected_shapes_are_those_of_a_model(config: ModelConfig) -> None:
    with torch.device("meta"):
        weights = name_weights(Transformer(config))
    assert list_shapes(config) == {name: tuple(weight.shape) for name, weight in weights.items()}
    assert list(list_shapes(config)) == list(weights)


MEASURE = """
import sys
from pathlib import Path
import torch
from model.checkpoints.folder import load_model

def read(key):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(lines[key].split()[0])

for folder, dtype in zip(sys.argv[1::2], sys.argv[2::2]):
    Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
    before = read("VmRSS")
    model = load_model(Path(folder), "cpu", getattr(torch, dtype))
    print((read("VmHWM") - before) / sum(weight.nbytes for weight in model.parameters()))
    del model
assert "sympy" not in sys.modules, "torch's compiler was loaded, which takes seconds"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_never_has_the_weights_twice(tmp_path: Path) -> None:
    """95 MB of them: as they are in the file, widened and narrowed, and of a pickle."""
    model = make_model(ModelConfig(300, 512, 6, 8, 2048, 64, num_key_value_heads=4))
    plain, half, pickled = folders = [tmp_path / name for name in ("plain", "half", "pickled")]
    for folder in folders:
        save_model(folder, model, TOKENIZER_JSON)
    weights = name_weights(model)
    save_file({n: weight.half() for n, weight in weights.items()}, half / "model.safetensors")
    write_files(pickled, {"pytorch_model.bin": weights})
    asked = [(plain, "float32"), (half, "float32"), (half, "bfloat16"), (pickled, "float32")]
    words = [str(word) for pair in asked for word in pair]
    command = [sys.executable, "-c", MEASURE, *words]
    # What was freed goes back to the machine at once, before the next is measured.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert answer.returncode == 0, answer.stderr
    shares = [float(line) for line in answer.stdout.splitlines()]
    assert len(shares) == 4
    assert min(shares) > 0.8
    assert max(shares) < 1.3


def test_a_run_saves_and_reads_several_files(
    small_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    schedule: dict[str, object] = {"training__cycle_steps": 6, "training__save_steps": 2}
    run_small(small_shards, tmp_path / "one", **schedule)
    monkeypatch.setattr("model.checkpoints.weights.MAX_FILE_BYTES", 20_000)
    run_small(small_shards, tmp_path / "several", **schedule | {"training__num_training_steps": 4})
    folder = tmp_path / "several" / "checkpoints"
    files = sorted(path.name for path in (folder / "checkpoint-4").glob("model*"))
    assert len(files) > 2
    flip_byte(folder / "checkpoint-4" / files[1])
    run_small(small_shards, tmp_path / "several", **schedule)
    assert f"{files[1]}: damaged; its sha256" in capsys.readouterr().err
    assert read_metrics(tmp_path / "one") == read_metrics(tmp_path / "several")
    one, several = (
        load_model(tmp_path / n / "checkpoints" / "checkpoint-8") for n in ("one", "several")
    )
    for weight, other in zip(one.parameters(), several.parameters(), strict=True):
        assert torch.equal(weight, other)
