"""Adapters beside peft, which trains, loads and merges the same ones on transformers' Llama."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from cli import app
from model.adapters.base import ADAPTER_BASE, Base, hash_base
from model.adapters.config import AdapterConfig
from model.adapters.files import load_adapter, name_adapter, read_adapter_config
from model.adapters.layers import (
    AdaptedLinear,
    add_adapter,
    has_adapter,
    merge_adapter,
    without_adapter,
)
from model.adapters.parts import find_parts, load_parts
from model.adapters.peft_config import make_peft_config
from model.checkpoints.folder import encode_json, save_model, write_weights
from model.checkpoints.seal import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CheckpointError,
    seal,
    verify_model,
)
from model.config import ModelConfig
from model.decode.settings import Settings
from model.export.merge import merge as merge_folder
from model.export.source import open_source
from model.generate import load_generator
from model.transformer import Transformer
from tests.tiny import CONFIG, TOKENIZER_JSON, make_model

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
# peft's own calls of what transformers will drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

CONFIGS = {
    "lora": AdapterConfig(rank=4, alpha=10),
    "dora": AdapterConfig("dora", rank=4, alpha=10),
    "some": AdapterConfig(rank=2, alpha=3, targets=("q_proj", "v_proj")),
    "rows": AdapterConfig("dora", rank=3, alpha=3, token_ids=(299, 7)),
}
KINDS = pytest.mark.parametrize("kind", CONFIGS)
TOKENS = torch.randint(300, (3, 24), generator=torch.Generator().manual_seed(1))
TOKENS[1, 3:9] = torch.tensor([299, 7, 7, 299, 5, 7])


def make_base(folder: Path, config: ModelConfig = CONFIG) -> Path:
    """A base as a folder of ours."""
    save_model(folder, make_model(config), TOKENIZER_JSON)
    seal(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = replace(CONFIG, tie_word_embeddings=not CONFIG.tie_word_embeddings)
    return make_base(tmp_path_factory.mktemp("base") / "other", config)


def randomize(tensors: Iterator[tuple[str, Tensor]], deviation: float = 0.2) -> None:
    """Give an adapter numbers as training would, none of which is where it began."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in sorted(tensors, key=lambda entry: entry[0]):
        noise = torch.randn(tensor.shape, generator=generator)
        with torch.no_grad():
            if "magnitude" in name:
                tensor.mul_(1 + deviation * noise)
            else:
                tensor.copy_(deviation * noise)


def make_adapted(base: Path, config: AdapterConfig) -> Transformer:
    """The base with an adapter whose numbers are not where they began."""
    model = load_parts(find_parts(base))
    add_adapter(model, config)
    randomize(iter(name_adapter(model).items()))
    return model


def save_adapter(
    folder: Path, model: Transformer, config: AdapterConfig, base: Path, is_ours: bool = True
) -> Path:
    """The files of an adapter, with what our runs write beside them."""
    folder.mkdir()
    is_tied = model.config.tie_word_embeddings
    write_weights(folder / ADAPTER_WEIGHTS, name_adapter(model))
    (folder / ADAPTER_CONFIG).write_bytes(encode_json(make_peft_config(config, str(base), is_tied)))
    if is_ours:
        (folder / ADAPTER_BASE).write_bytes(Base(str(base), hash_base(base)).describe())
    return folder


def make_peft(base: Path, config: AdapterConfig, **more: Any) -> Any:
    """peft's adapter of the same kind on transformers' model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    values = make_peft_config(config, str(base), model.config.tie_word_embeddings)
    made = peft.LoraConfig(**values | {"inference_mode": False} | more)
    return peft.get_peft_model(model, made).eval()


def list_trained(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """peft's parameters by the names that its files have."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = name.replace(".default", "")
            is_vector = "magnitude" in plain
            yield (plain.removesuffix(".weight") if is_vector else plain), parameter


def test_a_new_adapter_changes_nothing_and_draws_as_peft_does(base: Path) -> None:
    expected = load_parts(find_parts(base))(TOKENS)
    for kind, config in CONFIGS.items():
        model = load_parts(find_parts(base))
        torch.manual_seed(0)
        add_adapter(model, config)
        assert torch.allclose(model(TOKENS), expected, atol=1e-5), kind
        own = name_adapter(model)
        torch.manual_seed(0)
        theirs = dict(list_trained(make_peft(base, config)))
        assert {name: t.shape for name, t in own.items()} == {
            name: t.shape for name, t in theirs.items()
        }
        for name, tensor in own.items():
            if "lora_A" in name:  # Drawn in another order, from the same distribution.
                bound = tensor.shape[1] ** -0.5
                assert 0.8 * bound < tensor.abs().max() <= bound >= theirs[name].abs().max()
            else:
                assert torch.allclose(tensor, theirs[name], atol=1e-6), name


@KINDS
@pytest.mark.parametrize("which", ["base", "untied"])
def test_peft_reads_our_files_and_computes_the_same(
    kind: str, which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base, config = request.getfixturevalue(which), CONFIGS[kind]
    model = make_adapted(base, config)
    folder = save_adapter(tmp_path / "adapter", model, config, base)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(plain, folder).eval()
    with torch.no_grad():
        ours, logits = model(TOKENS), theirs(TOKENS).logits
        assert (ours - logits).abs().max() < 1e-4
        before = load_parts(find_parts(base))(TOKENS)
        assert (ours - before).abs().max() > 0.1  # It does something.
        with without_adapter(model):
            assert torch.equal(model(TOKENS), before)
        assert torch.equal(model(TOKENS), ours)
        merged = theirs.merge_and_unload()
        own = load_parts(find_parts(folder)).eval()
        assert (own(TOKENS) - ours).abs().max() < 1e-4
    for name, weight in own.state_dict().items():
        assert torch.allclose(weight, merged.state_dict()[name], atol=2e-6), name


@KINDS
def test_an_adapter_that_peft_saved_is_read(kind: str, base: Path, tmp_path: Path) -> None:
    theirs = make_peft(base, CONFIGS[kind])
    randomize(list_trained(theirs))
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(TOKENS).logits
        model = load_parts(find_parts(base))
        load_adapter(model, tmp_path)
        assert (model(TOKENS) - expected).abs().max() < 1e-4
        assert (load_parts(find_parts(tmp_path, base))(TOKENS) - expected).abs().max() < 1e-4


def test_rank_stabilized_adapters_and_all_linear_of_peft_are_read(
    base: Path, tmp_path: Path
) -> None:
    config = AdapterConfig(rank=4, alpha=3, is_rank_stabilized=True)
    theirs = make_peft(base, config, target_modules="all-linear")
    randomize(list_trained(theirs))
    theirs.save_pretrained(tmp_path)
    assert read_adapter_config(tmp_path) == config
    with torch.no_grad():
        ours, expected = load_parts(find_parts(tmp_path, base))(TOKENS), theirs(TOKENS).logits
    assert (ours - expected).abs().max() < 1e-4


@KINDS
@pytest.mark.parametrize("which", ["base", "untied"])
def test_gradients_are_pefts_and_the_base_has_none(
    kind: str, which: str, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(which)
    model, theirs = make_adapted(base, CONFIGS[kind]), make_peft(base, CONFIGS[kind])
    randomize(list_trained(theirs))
    model(TOKENS[:, :-1], TOKENS[:, 1:].contiguous()).backward()
    theirs(TOKENS, labels=TOKENS).loss.backward()
    expected, found = dict(list_trained(theirs)), name_adapter(model)
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert weight.grad is not None
        assert expected[name].grad.abs().max() > 1e-4, name
        assert torch.allclose(weight.grad, expected[name].grad, rtol=1e-3, atol=1e-6), name
    trained = {id(weight) for weight in found.values()}
    assert all(w.grad is None for w in model.parameters() if id(w) not in trained)


@KINDS
def test_merging_is_exact_and_done_once(kind: str) -> None:
    model = make_model(replace(CONFIG, initializer_range=0.02))
    with torch.no_grad():
        before = model(TOKENS)
        add_adapter(model, CONFIGS[kind])
        randomize(iter(name_adapter(model).items()), deviation=0.02)
        expected = model(TOKENS)
        assert (expected - before).abs().max() > 1e-3
        merge_adapter(model)
        assert (model(TOKENS) - expected).abs().max() < 1e-6
    assert not has_adapter(model)
    assert model.state_dict().keys() == make_model().state_dict().keys()
    assert all(weight.requires_grad for weight in model.parameters())
    with pytest.raises(ValueError, match="no adapter to merge"):
        merge_adapter(model)
    add_adapter(model, CONFIGS[kind])
    with pytest.raises(ValueError, match="has an adapter already"):
        add_adapter(model, CONFIGS[kind])


def test_magnitudes_are_not_rounded_to_half_precision(base: Path) -> None:
    model = load_parts(find_parts(base))
    add_adapter(model, CONFIGS["dora"])
    layer = model.model.layers[0].self_attn.q_proj
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = layer(x).float()
        layer.lora_magnitude_vector.mul_(1.1)  # In bf16, that is 1.1016.
        after = layer(x).float()
    ratio = (after * before).sum() / before.square().sum()
    assert 1.0995 < ratio < 1.1005


def test_an_adapter_in_bf16_and_a_base_in_bf16(base: Path, tmp_path: Path) -> None:
    model = make_adapted(base, CONFIGS["lora"])
    folder = save_adapter(tmp_path / "adapter", model, CONFIGS["lora"], base)
    halves = {name: tensor.detach().bfloat16() for name, tensor in name_adapter(model).items()}
    write_weights(folder / ADAPTER_WEIGHTS, halves)
    with torch.no_grad():
        found = load_parts(find_parts(folder), dtype=torch.bfloat16).state_dict()
        for name, tensor in name_adapter(model).items():
            tensor.copy_(halves[name])
        merge_adapter(model)
    name = "model.layers.2.mlp.up_proj.weight"
    assert found[name].dtype == torch.bfloat16
    # The base was rounded, and the sum once more.
    assert (found[name].float() - model.state_dict()[name]).abs().max() < 2**-7


def test_new_tokens_of_an_adapter_are_rows_that_the_base_lacks(base: Path, tmp_path: Path) -> None:
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain.resize_token_embeddings(302)
    values = make_peft_config(
        AdapterConfig(rank=2, token_ids=(300, 301)), str(base), plain.config.tie_word_embeddings
    )
    theirs = peft.get_peft_model(plain, peft.LoraConfig(**values | {"inference_mode": False}))
    randomize(list_trained(theirs))
    theirs.eval().save_pretrained(tmp_path, save_embedding_layers=False)
    tokens = TOKENS.clone()
    tokens[0, ::2] = 301
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert (load_parts(find_parts(tmp_path, base))(tokens) - expected).abs().max() < 1e-3
    (tmp_path / ADAPTER_CONFIG).write_text(
        (tmp_path / ADAPTER_CONFIG).read_text().replace("300,", "299,")
    )
    with pytest.raises(CheckpointError, match="has only 300 rows"):
        load_parts(find_parts(tmp_path, base))


def test_a_folder_is_merged_sampled_and_exported(base: Path, tmp_path: Path) -> None:
    config = CONFIGS["dora"]
    model = make_adapted(base, config)
    folder = save_adapter(tmp_path / "adapter", model, config, base)
    out = tmp_path / "merged"
    said = CliRunner().invoke(app, ["merge", str(folder), str(out)])
    assert said.exit_code == 0, said.output
    assert "merged as float32" in said.output
    plain = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        assert (plain(TOKENS).logits - model(TOKENS)).abs().max() < 1e-4
    verify_model(out)
    [text], [merged] = (
        load_generator(path, "cpu").complete(["The quick"], Settings(seed=1, max_new_tokens=8))
        for path in (folder, out)
    )
    assert text.tokens == merged.tokens
    source = open_source(folder)
    assert torch.allclose(source.compute(TOKENS), plain(TOKENS).logits, atol=1e-4)
    # Nothing is overwritten, and a merged folder is no adapter.
    again = CliRunner().invoke(app, ["merge", str(folder), str(out)])
    assert "is there already" in str(again.exception)
    with pytest.raises(CheckpointError, match="not an adapter; there is nothing to merge"):
        merge_folder(out, tmp_path / "twice", None, None, print)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


def test_a_merge_that_computes_something_else_is_not_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS["lora"]
    folder = save_adapter(tmp_path / "adapter", make_adapted(base, config), config, base)

    def merge_twice_as_much(model: Transformer) -> None:
        for layer in model.modules():
            if isinstance(layer, AdaptedLinear):
                layer.scale *= 2
        merge_adapter(model)

    monkeypatch.setattr("model.export.merge.merge_adapter", merge_twice_as_much)
    with pytest.raises(ValueError, match="not kept, because its logits differ"):
        merge_folder(folder, tmp_path / "merged", None, None, print)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_another_base_is_refused_and_a_stranger_leads_nowhere(
    base: Path, untied: Path, tmp_path: Path
) -> None:
    config = CONFIGS["lora"]
    model = make_adapted(base, config)
    ours = save_adapter(tmp_path / "ours", model, config, base)
    with pytest.raises(CheckpointError, match=r"not the model that .* was trained on: the sha256"):
        find_parts(ours, untied)
    assert find_parts(ours, base).base == base
    theirs = save_adapter(tmp_path / "theirs", model, config, base, is_ours=False)
    with pytest.raises(CheckpointError, match="which is only loaded if you name it: give --base"):
        find_parts(theirs)
    assert find_parts(theirs, base).base == base
    with pytest.raises(CheckpointError, match="is an adapter; name the model"):
        find_parts(theirs, ours)
    (ours / ADAPTER_BASE).write_bytes(Base(str(tmp_path / "gone"), hash_base(base)).describe())
    path = ours / ADAPTER_CONFIG
    path.write_text(path.read_text().replace(str(base), "gone"))
    with pytest.raises(
        CheckpointError, match="which is no longer there; say where it is with --base"
    ):
        find_parts(ours)


def test_weights_in_several_files_have_one_hash(tmp_path: Path) -> None:
    model = make_model()
    save_model(tmp_path / "a", model, TOKENIZER_JSON, max_file_bytes=100_000)
    found = hash_base(tmp_path / "a")
    seal(tmp_path / "a")
    assert hash_base(tmp_path / "a") == found
    assert len([*(tmp_path / "a").glob("model-*.safetensors")]) > 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "IA3", "peft_type is 'IA3', expected 'LORA'"),
        ("bias", "all", "bias is 'all', expected 'none'"),
        ("modules_to_save", ["lm_head"], "modules_to_save is .*, expected nothing"),
        ("rank_pattern", {"q_proj": 3}, "rank_pattern is .*, expected nothing"),
        ("init_lora_weights", "pissa", "init_lora_weights is 'pissa'"),
        ("target_modules", "q_.*", "target_modules is 'q_.*', expected a list"),
        ("target_modules", ["w_proj"], "target_modules: 'w_proj'; expected some of q_proj"),
        ("use_dora", True, "7 differences, the first: .*lora_magnitude.* is missing"),
        ("r", 5, "holds matrices of rank 4, but r in adapter_config.json is 5"),
        ("r", 10**12, "holds matrices of rank 4, but r in adapter_config.json is 10{12}"),
        ("trainable_token_indices", [10**15], "has only 300 rows"),
        ("a_new_key_of_peft", 3, "a_new_key_of_peft is 3, expected nothing"),
        ("layers_to_transform", 0, "layers_to_transform is 0, expected nothing"),
        ("lora_alpha", 10**400, "alpha is 10{15}.*; expected a number above 0"),
        ("lora_alpha", float("nan"), "alpha is nan; expected a number above 0"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    key: str, value: object, message: str, base: Path, tmp_path: Path
) -> None:
    config = CONFIGS["lora"]
    folder = save_adapter(tmp_path / "adapter", make_adapted(base, config), config, base)
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_parts(find_parts(folder))
    assert str(path.parent) in str(caught.value)
