"""`velocity convert --context`: past the old limit, transformers computes what we do from it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import cli
from model.cache import allocate_cache
from model.checkpoints.folder import load_model, save_model
from model.checkpoints.hugging_face import read_config_json
from model.checkpoints.seal import CheckpointError, is_sealed, seal, verify
from model.compiled import find_library
from model.config import ModelConfig
from model.convert.longer import lengthen
from model.convert.options import Longer, Stretch
from model.convert.stretch import stretch_context
from model.decode.settings import Settings
from model.export import int8
from model.export.source import open_source
from model.generate import load_generator
from model.rotation import find_frequencies, find_length_factor
from model.serve.batcher import Batcher
from model.steps.cpu import Step
from tests.model.test_batcher import Client
from tests.model.test_export import run as run_export
from tests.tiny import CONFIG, SENTENCES, TOKENIZER_JSON, make_model

OLD, NEW = 64, 512
SHORT = replace(CONFIG, max_position_embeddings=OLD, num_key_value_heads=2)
WAYS: tuple[Stretch, ...] = ("theta", "yarn", "llama3", "linear")
# Beyond the 256 positions up to which model/steps/cpu.py knows all angles from the start.
NUM_TOKENS = 300
# Logits differ by more than 1 where positions are wrong. Angles of far positions are large numbers
# in fp32, so that what their frequencies differ by in the last bit grows with them.
NEAR = {"atol": 3e-3, "rtol": 0}
THETA = 10000.0 * 8 ** (16 / 14)
# config.json as each of its readers wants it; s is 8, and heads are 16 wide.
KEYS: dict[Stretch, dict[str, Any]] = {
    "theta": {
        "max_position_embeddings": NEW,
        "rope_theta": THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
    },
    "yarn": {
        "max_position_embeddings": NEW,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": OLD,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": True,
        },
    },
    "llama3": {
        "max_position_embeddings": NEW,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "original_max_position_embeddings": OLD,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    },
    # transformers and vLLM multiply it by the factor.
    "linear": {
        "max_position_embeddings": OLD,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ours with a context of 64."""
    folder = tmp_path_factory.mktemp("short") / "checkpoint-5"
    save_model(folder, make_model(SHORT), TOKENIZER_JSON)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "optimizer.safetensors").write_bytes(b"moments")
    (folder / "training_state.json").write_text("{}")
    seal(folder)
    return folder


@pytest.fixture(scope="module")
def longer(short: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Stretch, Path]:
    """The same with a context of 512, in each way."""
    out = tmp_path_factory.mktemp("longer")
    for way in WAYS:
        lengthen(short, out / way, Longer(NEW, way))
    return {way: out / way for way in WAYS}


def load_theirs(folder: Path) -> LlamaForCausalLM:
    llama: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(folder)
    return llama.eval()


def make_tokens(num_tokens: int = NUM_TOKENS) -> Tensor:
    return torch.randint(300, (1, num_tokens), generator=torch.Generator().manual_seed(1))


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize("way", WAYS)
def test_config_json_says_it_to_every_reader(longer: dict[Stretch, Path], way: Stretch) -> None:
    """rope_parameters for transformers 5; rope_scaling and rope_theta for 4, vLLM and llama.cpp."""
    values = read_json(longer[way] / "config.json")
    expected = {"rope_theta": 10000.0} | KEYS[way]
    if scaling := expected.get("rope_scaling"):
        expected["rope_parameters"] = scaling | {"rope_theta": 10000.0}
    assert {key: values.get(key) for key in expected} == expected
    assert ("rope_scaling" in values) == (way != "theta")
    assert read_json(longer[way] / "tokenizer_config.json")["model_max_length"] == NEW
    assert load_model(longer[way]).config.context == NEW
    # What transformers 4 computes of the keys: yarn's factor is the quotient of both lengths.
    if way == "yarn":
        original = values["rope_scaling"]["original_max_position_embeddings"]
        assert values["max_position_embeddings"] / original == values["rope_scaling"]["factor"]


@pytest.mark.parametrize("way", WAYS)
def test_positions_turn_as_in_transformers(longer: dict[Stretch, Path], way: Stretch) -> None:
    theirs, config = load_theirs(longer[way]), load_model(longer[way]).config
    found = find_frequencies(torch.zeros(1, 1, dtype=torch.int64), config)
    torch.testing.assert_close(found, theirs.model.rotary_emb.inv_freq)
    assert find_length_factor(config) == pytest.approx(theirs.model.rotary_emb.attention_scaling)
    # The slowest pair turns 8 times slower, so that it ends where it ended; the fastest as before,
    # apart from linear. 16 / (2 pi) turns of it and more are in 64 tokens: no ramp touches it.
    before = find_frequencies(torch.zeros(1, 1, dtype=torch.int64), SHORT)
    assert float(before[-1] / found[-1]) == pytest.approx(8, rel=1e-4)
    assert float(before[0] / found[0]) == pytest.approx(8 if way == "linear" else 1, rel=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_logits_past_the_old_limit_are_those_of_transformers(
    longer: dict[Stretch, Path], short: Path, way: Stretch
) -> None:
    tokens = make_tokens()
    with torch.no_grad():
        found, expected = load_model(longer[way])(tokens), load_theirs(longer[way])(tokens).logits
        before = load_model(short)(tokens)
    assert expected.std() > 0.3
    torch.testing.assert_close(found, expected, **NEAR)
    assert not torch.allclose(found[:, OLD:], before[:, OLD:], atol=0.1)


@pytest.mark.parametrize("way", WAYS)
def test_a_cached_text_past_the_old_limit_is_a_whole_one(
    longer: dict[Stretch, Path], way: Stretch
) -> None:
    """By torch and by step.c: token by token over the limit, and on in pieces."""
    model, tokens = load_model(longer[way]).eval(), make_tokens()
    with torch.no_grad():
        expected = load_theirs(longer[way])(tokens).logits[0]
    library = find_library()
    steps = (
        [model.predict] if library is None else [model.predict, Step(library, model, 16).predict]
    )
    for predict in steps:
        cache = allocate_cache(model.config, 1, NEW, torch.device("cpu"), torch.float32)
        model.predict(tokens[:, : OLD - 3], cache)
        ends = [*range(OLD - 2, OLD + 4), *range(OLD + 9, 250, 11), *range(250, NUM_TOKENS + 1)]
        for start, end in zip([OLD - 3, *ends], ends, strict=False):
            [found] = predict(tokens[:, start:end], cache)
            torch.testing.assert_close(found, expected[end - 1], **NEAR)


@pytest.mark.parametrize("way", WAYS)
def test_the_server_writes_past_the_old_limit_what_transformers_does(
    longer: dict[Stretch, Path], way: Stretch
) -> None:
    """Rows before, at and behind the limit in one batch."""
    generator = load_generator(longer[way], "cpu")
    theirs, batcher = load_theirs(longer[way]), Batcher(generator, max_texts=4, max_waiting=4)
    prompts = [SENTENCES[0], " ".join(SENTENCES * 2), " ".join(SENTENCES) * 3]
    settings = Settings(do_sample=False, max_new_tokens=40)
    lengths = [len(generator.tokenizer.encode(prompt).ids) for prompt in prompts]
    assert lengths[0] < OLD - 20 < OLD < lengths[1] < lengths[2] < NEW - 40
    clients = [Client(generator.start([prompt], settings)) for prompt in prompts]
    for client in clients:
        batcher.submit(client.job)
    texts = [client.wait()[0] for client in clients]
    batcher.stop(0)
    for prompt, text in zip(prompts, texts, strict=True):
        tokens = torch.tensor([generator.tokenizer.encode(prompt).ids])
        with torch.no_grad():
            expected = theirs.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=40,
                do_sample=False,
                top_k=None,
                top_p=None,
                temperature=None,
                eos_token_id=0,
                pad_token_id=0,
            )
        new = [token for token in expected[0, tokens.shape[1] :].tolist() if token]
        assert text == prompt + generator.tokenizer.decode(new)


@pytest.mark.parametrize("way", WAYS)
def test_gguf_says_how_it_was_stretched(
    longer: dict[Stretch, Path], tmp_path: Path, way: Stretch
) -> None:
    gguf = pytest.importorskip("gguf")
    run_export(longer[way], "gguf", tmp_path / "model.gguf", "fp32")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    names = ("context_length", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor")
    names = (*names, "rope.scaling.original_context_length")
    found = [
        None if (field := reader.get_field(f"llama.{name}")) is None else field.contents()
        for name in names
    ]
    expected: dict[Stretch, list[Any]] = {
        "theta": [NEW, pytest.approx(THETA), None, None, None],
        "yarn": [NEW, 10000.0, "yarn", 8.0, OLD],
        "linear": [NEW, 10000.0, "linear", 8.0, None],
        # llama.cpp has Llama 3's way as a tensor of factors alone.
        "llama3": [NEW, 10000.0, None, None, None],
    }
    assert found == expected[way]
    factors = {t.name: t.data for t in reader.tensors}.get("rope_freqs.weight")
    assert (factors is not None) == (way == "llama3")
    if factors is not None:
        assert (factors[0], factors[-1]) == pytest.approx((1.0, 8.0))


def test_weights_and_tokenizer_are_the_same_files(short: Path, longer: dict[Stretch, Path]) -> None:
    """And what a run keeps to go on is left behind: it is of the other model."""
    for folder in longer.values():
        verify(folder)
        for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja"):
            assert (folder / name).read_bytes() == (short / name).read_bytes()
        names = {path.name for path in short.iterdir()}
        assert names - {path.name for path in folder.iterdir()} == {
            "optimizer.safetensors",
            "training_state.json",
        }


def test_a_folder_from_elsewhere_stays_one(tmp_path: Path) -> None:
    """Weights in several files, keys that only others read, and files that are not the model."""
    theirs, out = tmp_path / "theirs", tmp_path / "out"
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 12}
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            intermediate_size=64,
            num_hidden_layers=2,
            max_position_embeddings=48,
            initializer_range=0.2,
            rope_theta=20000.0,
            eos_token_id=[0, 5],
            pretraining_tp=2,
            **shape,
        )
    )
    llama.generation_config.max_length = 48
    llama.save_pretrained(theirs, max_shard_size="20KB")
    save_model(tmp_path / "ours", make_model(), TOKENIZER_JSON)
    AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(theirs)
    (theirs / "LICENSE").write_text("free")
    for name in ("model-q4.gguf", "pytorch_model.bin", "pytorch_model.bin.index.json", ".cache"):
        (theirs / name).write_text("{}")
    (theirs / "onnx").mkdir()
    before, after = lengthen(theirs, out, Longer(120, "yarn"))
    assert (before.context, after.context) == (48, 120)
    assert not is_sealed(out)
    kept = {path.name for path in theirs.iterdir()} - {path.name for path in out.iterdir()}
    assert kept == {
        "model-q4.gguf",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        ".cache",
        "onnx",
    }
    values, old = read_json(out / "config.json"), read_json(theirs / "config.json")
    assert {key for key in old if values.get(key) != old[key]} == {
        "max_position_embeddings",
        "rope_parameters",
    }
    assert values["rope_scaling"]["original_max_position_embeddings"] == 48
    assert read_json(out / "generation_config.json")["max_length"] == 120
    model, again, tokens = load_model(out), load_theirs(out), make_tokens(110)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), again(tokens).logits, **NEAR)
    # And once more, from what is stretched already.
    lengthen(out, tmp_path / "more", Longer(240, "yarn"))
    scaling = read_json(tmp_path / "more" / "config.json")["rope_scaling"]
    assert (scaling["factor"], scaling["original_max_position_embeddings"]) == (5.0, 48)


def test_an_int8_folder_gets_longer_too(short: Path, tmp_path: Path) -> None:
    """Its weights are what they were, as numbers and as a file."""
    folder = int8.write(open_source(short), tmp_path, "int8", "int8")
    lengthen(folder, tmp_path / "out", Longer(NEW, "yarn"))
    before, after = load_model(folder), load_model(tmp_path / "out")
    assert (before.config.context, after.config.context) == (OLD, NEW)
    assert after.state_dict().keys() == before.state_dict().keys()
    for name, weight in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], weight)


@pytest.mark.parametrize("way", WAYS)
def test_in_two_goes_it_is_what_it_is_in_one(way: Stretch) -> None:
    once = stretch_context(SHORT, 480, way)
    twice = stretch_context(stretch_context(SHORT, 160, way), 480, way)
    assert replace(twice, rope_theta=2.0) == replace(once, rope_theta=2.0)
    assert twice.rope_theta == pytest.approx(once.rope_theta, rel=1e-12)


def test_llama3_s_factor_may_be_less_than_the_contexts_have() -> None:
    """Llama 3.1 has 8 for 16 times the context; a context twice as long has twice that."""
    llama = replace(
        SHORT,
        max_position_embeddings=16 * OLD,
        rope_type="llama3",
        rope_factor=8.0,
        rope_original_max_position_embeddings=OLD,
    )
    further = stretch_context(llama, 32 * OLD, "llama3")
    assert (further.rope_factor, further.rope_original, further.context) == (16.0, OLD, 32 * OLD)


YARN = replace(SHORT, rope_type="yarn", rope_factor=2.0)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (SHORT, (32,), "--context is 32; expected more than 64, the model's context"),
        (SHORT, (64, "yarn"), "--context is 64; expected more than 64, the model's context"),
        (YARN, (128, "yarn"), "--context is 128; expected more than 128, the model's context"),
        (SHORT, (-1,), "--context is -1; expected more than 64, the model's context"),
        (
            YARN,
            (256, "linear"),
            "--rope is linear, but the model's context was already extended with rope_type yarn; "
            "give --rope yarn, or convert the original model instead",
        ),
        (
            YARN,
            (256, "theta"),
            "--rope is theta, but the model's context was already extended with rope_type yarn; "
            "give --rope yarn, or convert the original model instead",
        ),
        (
            replace(YARN, rope_type="dynamic"),
            (256, "yarn"),
            "--rope is yarn, but the model's context was already extended with rope_type dynamic; "
            "convert the original model instead",
        ),
        (
            replace(YARN, rope_attention_factor=1.5),
            (256, "yarn"),
            "the model's yarn has its own attention_factor, 1.5, which only suits rope_factor 2; "
            "convert the original model instead",
        ),
        (
            SHORT,
            (128, None, 10000.0),
            "--theta is 10000; expected more than the model's rope_theta, 10000",
        ),
        (
            SHORT,
            (128, "theta", float("inf")),
            "--theta is inf; expected more than the model's rope_theta, 10000",
        ),
        (
            replace(SHORT, head_dim=2),
            (128, "theta"),
            "--rope theta needs heads of a size above 2; choose another --rope, or give --theta",
        ),
    ],
)
def test_contexts_that_cannot_be_are_refused(
    config: ModelConfig, options: tuple[Any, ...], message: str
) -> None:
    wanted = Longer(*options)
    assert wanted.context is not None
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        stretch_context(config, wanted.context, wanted.way, wanted.theta)


def test_yarn_is_meant_unless_theta_is_given() -> None:
    assert [Longer(128).way, Longer(128, theta=5e5).way, Longer(128, "linear").way] == [
        "yarn",
        "theta",
        "linear",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((None, "yarn"), "--rope goes with --context; give both or neither"),
        ((None, None, 5e5), "--theta goes with --context; give both or neither"),
        ((128, "yarn", 5e5), "--theta goes with --rope theta, and not with --rope yarn"),
    ],
)
def test_options_of_no_use_are_refused(options: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Longer(*options)


def test_what_is_refused_leaves_nothing(short: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options in ((32, None, None), (128, None, 10.0)):
        with pytest.raises(ValueError, match="expected more than"):
            lengthen(short, out, Longer(*options))
    damaged = tmp_path / "damaged"
    shutil.copytree(short, damaged)
    with (damaged / "model.safetensors").open("r+b") as file:
        file.seek(500)
        file.write(b"\xff\xff")
    with pytest.raises(CheckpointError, match="its sha256 is not the one in checksums"):
        lengthen(damaged, out, Longer(128))
    original = tmp_path / "original"
    original.mkdir()
    (original / "pytorch_model.bin").write_bytes(b"")
    (original / "config.json").write_text('{"model": {}}')
    with pytest.raises(
        CheckpointError, match="original VelocityLM; convert it without --context f"
    ):
        lengthen(original, out, Longer(128))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shutil.copy(short / "config.json", adapter)
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match="adapter: an adapter, without the weights of the mod"
    ):
        lengthen(adapter, out, Longer(128))
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("")
    with pytest.raises(ValueError, match="out: not empty; name a new folder for the converted"):
        lengthen(short, out, Longer(128))


def test_the_command_says_what_it_did(short: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["convert", str(short), str(out), "--context", "4096", "--theta", "5e6"]
    done = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert (
        f"{out}: context 64 -> 4,096; rope_theta 10,000 -> 5,000,000; the weights are the same; "
        f"try it with: velocity sample --ckpt {out}"
    ) in done.output
    config = read_config_json(read_json(out / "config.json"))
    assert config == replace(SHORT, max_position_embeddings=4096, rope_theta=5e6)
    wrong = CliRunner().invoke(cli.app, [*words[:-2], "--rope", "longrope"])
    assert wrong.exit_code == 2
    assert "'longrope' is not one of 'yarn', 'theta', 'llama3', 'linear'" in wrong.output


def test_a_disk_that_fills_up_leaves_an_empty_folder(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copyfile = shutil.copyfile

    def fill_up(source: Path, target: Path) -> None:
        copyfile(source, target)
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", fill_up)
    with pytest.raises(OSError, match="No space left"):
        lengthen(short, tmp_path / "out", Longer(NEW, "yarn"))
    assert [*(tmp_path / "out").iterdir()] == []
    monkeypatch.undo()
    lengthen(short, tmp_path / "out", Longer(NEW, "yarn"))
    load_model(tmp_path / "out")
