"""The tree of settings: every key known, every value of its type, one way to override."""

import dataclasses
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from train.config import Config
from train.settings import config_from_dict, config_to_dict, list_named_configs, load_config
from train.step.schedule import describe_change, learning_rate
from train.training_config import TrainingConfig

# The original VelocityLM's settings file, key for key.
SEED_YAML = """
model:
  vocab_size: 50257
  hidden_size: 2048
  num_hidden_layers: 24
  num_attention_heads: 32
  intermediate_size: 8192
  hidden_act: "silu"
  max_position_embeddings: 2048
  initializer_range: 0.02
  layer_norm_eps: 0.00001
  use_cache: false
  rope_theta: 10000.0
  attention_dropout: 0.0
  hidden_dropout: 0.0
training:
  batch_size_per_device: 4
  gradient_accumulation_steps: 8
  learning_rate: 0.0006
  min_learning_rate: 0.00006
  weight_decay: 0.1
  adam_beta1: 0.9
  adam_beta2: 0.95
  adam_epsilon: 0.00000001
  max_grad_norm: 1.0
  warmup_steps: 2000
  num_training_steps: 100000
  logging_steps: 10
  save_steps: 1000
  eval_steps: 500
  save_total_limit: 5
  fp16: true
  gradient_checkpointing: true
data:
  dataset_name: "tiiuae/falcon-refinedweb"
  dataset_config: "default"
  text_column: "content"
  max_seq_length: 2048
  num_workers: 8
  preprocessing_num_workers: 16
tokenizer:
  tokenizer_name: "gpt2"
  add_special_tokens: true
infrastructure:
  num_gpus: 4
  seed: 42
  output_dir: "./checkpoints"
  logging_dir: "./logs"
  resume_from_checkpoint: null
distributed:
  backend: "nccl"
  find_unused_parameters: false
"""


def test_the_seed_file_gives_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "train_config.yaml"
    path.write_text(SEED_YAML)
    loaded, default = config_to_dict(load_config(str(path))), config_to_dict(Config())
    default["model"]["vocab_size"] = 50257
    default["training"]["gradient_accumulation_steps"] = 8
    default["infrastructure"] |= {
        "output_dir": "./checkpoints",
        "logging_dir": "./logs",
        "resume_from_checkpoint": None,
    }
    default["distributed"]["backend"] = "nccl"
    assert loaded == default


def test_the_default_model_is_the_seeds() -> None:
    assert round(Config().model.num_parameters() / 1e6, 1) == 1713.6


def test_the_named_configs_are_listed_by_size_and_the_last_has_the_default_model() -> None:
    assert list_named_configs() == ["tiny", "30m", "125m", "350m", "1.7b"]
    models = {name: load_config(name).model for name in list_named_configs()}
    # But for how its weights begin.
    own = replace(Config().model, init="depth_scaled")
    assert [name for name, model in models.items() if model == own] == ["1.7b"]


def test_the_named_configs_have_the_recipe_that_won_and_the_default_is_the_originals() -> None:
    for name in list_named_configs():
        training = load_config(name).training
        assert (training.optimizer, training.schedule) == ("muon", "linear_to_zero")
        assert load_config(name).model.init == "depth_scaled"
    training = Config().training
    assert (training.optimizer, training.schedule) == ("adamw", "cosine_restarts")
    assert (training.learning_rate, Config().model.init) == (6e-4, "normal")


def test_overrides_come_last_and_6e_4_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("training:\n  learning_rate: 5e-4\n  warmup_steps: 7\n")
    config = load_config(str(path), ["training.learning_rate=3e-4", "data.shards=/x/=y"])
    assert (config.training.learning_rate, config.training.warmup_steps) == (3e-4, 7)
    assert config.data.shards == "/x/=y"


@pytest.mark.parametrize(("word", "expected"), [("auto", "auto"), ("32768", 32768), ("1e5", 10**5)])
def test_the_models_ids_are_a_number_or_follow_the_set(
    tmp_path: Path, word: str, expected: object
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"model:\n  vocab_size: {word}\n")
    for config in (load_config(str(path)), load_config(None, [f"model.vocab_size={word}"])):
        assert config.model.vocab_size == expected
        assert config_from_dict(json.loads(json.dumps(config_to_dict(config))), "x") == config


def test_the_tree_round_trips_through_json() -> None:
    config = load_config("tiny", ["training.cycle_steps=null", "training.compile=false"])
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config))), "x") == config


@pytest.mark.parametrize(("word", "meant"), [("true", "full"), ("off", "none")])
def test_the_originals_checkpointing_is_one_of_todays(
    tmp_path: Path, word: str, meant: str
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"training:\n  gradient_checkpointing: {word}\n")
    old = f"training.gradient_checkpointing={word}"
    for config in (load_config(str(path)), load_config("tiny", [old])):
        assert config.training.activation_checkpointing == meant
    tree = {"training": {"gradient_checkpointing": word == "true"}}  # As checkpoints have it.
    assert config_from_dict(tree, "x").training.activation_checkpointing == meant
    # The command line counts more than the file, by either name; twice the same is no quarrel.
    new = "training.activation_checkpointing=selective"
    assert load_config(str(path), [new]).training.activation_checkpointing == "selective"
    agreeing = [old, f"training.activation_checkpointing={meant}"]
    assert load_config(str(path), agreeing).training.activation_checkpointing == meant
    message = (
        f"training.gradient_checkpointing={word} means training.activation_checkpointing="
        f"{meant}, but training.activation_checkpointing is selective; keep one of the two"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        load_config(None, [old, new])
    path.write_text(path.read_text() + "  activation_checkpointing: selective\n")
    with pytest.raises(ValueError, match=message):
        load_config(str(path))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.activation_checkpointing=half", "is 'half'; expected one of none, selective, f"),
        ("training.activation_memory_budget=1.5", "activation_memory_budget is 1.5; expected a nu"),
        ("training.lr=1", "no key 'training.lr'; expected one of training.global_batch_tokens, "),
        ("training.learning_rat=1", "no key 'training.learning_rat'; did you mean training.learni"),
        ("trainin.x=1", "no section 'trainin'; did you mean training?"),
        ("training.warmup_steps=1.5", "training.warmup_steps is '1.5'; expected a whole number"),
        ("training.warmup_steps=true", "training.warmup_steps is 'true'; expected a whole number"),
        ("training.learning_rate=fast", "learning_rate is 'fast'; expected a number"),
        ("training.precision=fp8", "precision is 'fp8'; expected one of fp16, bf16, fp32"),
        ("training.cycle_steps=x", "cycle_steps is 'x'; expected a whole number or null"),
        ("training.compile=3", "compile is '3'; expected true or false or null"),
        ("training", "expected section.key=value"),
        ("training.warmup_steps", "expected section.key=value"),
        ("model=3", "expected section.key=value"),
        ("model.hidden_dropout=0.1", "hidden_dropout is '0.1', which is not supported: the model"),
        ("model.hidden_act=gelu", "not supported: the model has SwiGLU, whose activation is silu"),
        ("data.max_seq_length=4096", "data.max_seq_length is 4096; the model's context, model.max"),
        ("training.weight_decay=.nan", "weight_decay is '.nan'; expected a number"),
        ("training.learning_rate=nan", "learning_rate is 'nan'; expected a number"),
        ("training.learning_rate=-.inf", "learning_rate is '-.inf'; expected a number"),
        ("training.learning_rate=1e999", "learning_rate is '1e999'; expected a number"),
        ("training.learning_rate=" + "[" * 3000, "training.learning_rate is '[[["),
        ("training.learning_rate=2020-99-99", "learning_rate is '2020-99-99'; expected a num"),
        ("training.learning_rate=!!python/name:os.system", "training.learning_rate is '!!python"),
        ("training.precision=!!float", "precision is '!!float'; expected one of fp16, bf16, fp32"),
        ("training.precision=FP16", "precision is 'FP16'; expected one of fp16, bf16, fp32"),
        ("training.logging_steps=!!timestamp 1", "logging_steps is '!!timestamp 1'; expected a"),
        ("model.vocab_size=many", "vocab_size is 'many'; expected a whole number or auto"),
        ("model.vocab_size=0", "model.vocab_size is 0; expected a whole number above 0"),
        ("model.vocab_size=null", "vocab_size is 'null'; expected a whole number or auto"),
        ("model.vocab_size=1.5", "vocab_size is '1.5'; expected a whole number or auto"),
        ("training.warmup_steps=auto", "warmup_steps is 'auto'; expected a whole number"),
        ("training.logging_steps=010", "is '010'; expected a whole number without leading zeros"),
        ("training.logging_steps=1:30", "logging_steps is '1:30'; expected a whole number"),
        ("training.logging_steps=0x10", "logging_steps is '0x10'; expected a whole number"),
        ("training.logging_steps=", "logging_steps is ''; expected a whole number"),
        ("training.logging_steps=" + "9" * 5000, "expected a whole number below 2**63"),
        ("training.num_training_steps=1e10", "num_training_steps is 10000000000; expected at mo"),
        ("training.num_training_steps=-3", "num_training_steps is -3; expected at least 1"),
        ("training.batch_size_per_device=1000000000", "more tokens a step than a rank can hold"),
        ("training.gradient_accumulation_steps=1e9", "training.gradient_accumulation_steps=1,0"),
        ("training.adam_beta2=1", "training.adam_beta2 is 1.0; expected a number from 0 to below"),
        ("training.adam_epsilon=0", "training.adam_epsilon is 0.0; expected a number above 0"),
        ("model.num_attention_heads=7", "model.hidden_size is 2048; expected a multiple of"),
        ("data.max_seq_length=0", "data.max_seq_length is 0; expected at least 1"),
        ("data.shards=", "data.shards is empty; expected a path"),
        ("infrastructure.output_dir= ", "infrastructure.output_dir is empty; expected a path"),
        ("infrastructure.output_dir=a\0b", "infrastructure.output_dir is 'a\\x00b'; a path has"),
        ("infrastructure.logging_dir=\udcff", "which is not valid UTF-8"),
        ("infrastructure.output_dir=$NO_SUCH/a", "but $NO_SUCH is not set"),
        ("infrastructure.output_dir=gs://k:SECRET@b/x", "is the URL gs://b/x; a run reads and wri"),
        ("distributed.device=cuda:9", "distributed.device is 'cuda:9'; expected one of auto, cuda"),
        ("distributed.backend=no", "distributed.backend is 'no'; expected one of auto, nccl, gloo"),
        (
            "learning_rate=1",
            "expected section.key=value, such as training.max_grad_norm=1; did you",
        ),
        ("training.seed=1", "no key 'training.seed'; did you mean infrastructure.seed?"),
        ("training.eval_windows=-5", "training.eval_windows is -5; expected at least 0"),
        ("training.fp16=maybe", "training.fp16 is 'maybe'; expected true or false"),
        ("infrastructure.seed=99999999999999999999999", "expected a whole number below 2**63"),
        ("infrastructure.seed=-1", "infrastructure.seed is -1; expected 0 to 2**63 - 1"),
        ("data.dataset_name=a/b", "not supported: velocity prep --dataset decides"),
        ("training.save_steps=0", "training.save_steps is 0; expected at least 1"),
        ("training.min_learning_rate=1", "min_learning_rate is 1.0; expected a number from 0 to"),
        ("model.hidden_size=100", "model.hidden_size is 100; expected a multiple of"),
        ("tokenizer.tokenizer_name=llama", "tokenizer_name is 'llama'; leave it out"),
        ("tokenizer.add_special_tokens=false", "add_special_tokens is false; shards always end a"),
    ],
)
def test_mistakes_name_the_key(override: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        load_config(None, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: 3\n", "training is a section; expected keys below it"),
        ("- a\n", "expected sections such as `training:`"),
        ("training: {\n", "not valid YAML"),
        ("training:\n  steps: 3\n", "a.yaml, line 2: no key 'training.steps'"),
        ("# nothing\n", "has no settings; expected sections such as `training:`"),
        ("training:\n", "a.yaml, line 1: training is a section; expected keys below it"),
        (
            "data:\n  max_seq_length: 8\ntraining:\n  save_steps: 1\ndata:\n  shards: x\n",
            "a.yaml, line 5: the section data stands here twice, first in line 1; keep one",
        ),
        (
            "training: {save_steps: 1, save_steps: 2}\n",
            "a.yaml, line 1: the key training.save_steps stands here twice",
        ),
        ("data:\n  shards: &x [*x]\n", "a.yaml, line 2: data.shards is a list or has keys below"),
        ("data: &x\n  shards: a\ntraining: *x\n", "a.yaml, line 3: *x is an alias"),
        ("data: {shards: !!python/name:os.system a}", "os.system is a tag, which is not read here"),
        ("data: {shards: !!timestamp a}", "timestamp is a tag, which is not read here"),
        ("training:\n  save_steps: " + "[" * 3000, "a.yaml, line 2: training.save_steps is a list"),
        ("{" * 100_000, "a key is a list or mapping; expected a name"),
        ("training:\n\tsave_steps: 1\n", "a.yaml, line 2: not valid YAML (while scanning for the"),
        ("data: {}\n---\ndata: {}\n", "a.yaml, line 2: a second document begins; expected one"),
        ('data: {shards: "\\UFFFFFFFF"}', "a.yaml: not valid YAML"),
        ("%YAML " + "9" * 5000 + "\n--- {}", "a.yaml: not valid YAML"),
        ("training:\n  save_steps: 010\n", "a.yaml, line 2: training.save_steps is '010'; expect"),
        ("training:\n  save_steps: 1:30\n", "a.yaml, line 2: training.save_steps is '1:30'; expe"),
        ("training:\n  save_steps: 2020-01-01\n", "training.save_steps is '2020-01-01'; expected"),
        ("infrastructure:\n  output_dir: ~\n", "infrastructure.output_dir is None; expected text"),
        ("distributed:\n  backend: no\n", "distributed.backend is 'no'; expected one of auto"),
        ('data:\n  shards: "a\\0b"\n', "a.yaml, line 2: data.shards is 'a\\x00b'; a path has no"),
    ],
)
def test_mistakes_in_a_file_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.yaml") as caught:
        load_config(str(path))
    assert message in str(caught.value)


def test_files_that_are_no_settings_are_told_apart(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(bytes(range(128, 256)))
    (tmp_path / "nul").write_bytes("data:".encode("utf-16-le"))
    (tmp_path / "large").write_bytes(b" " * (2**20 + 1))
    for name, message in {
        "pipe": "is not a regular file, and every rank reads the settings",
        "folder": "is a folder; expected a settings file",
        "binary": "not text in UTF-8 (byte 0)",
        "nul": "not a text file: it holds NUL characters",
        "large": "has 1,048,577 bytes; settings have at most 1,048,576",
        "none": "no such file; --config takes a path or one of tiny, 30m, 125m, 350m, 1.7b",
    }.items():
        with pytest.raises(ValueError, match=f"{tmp_path / name}: ") as caught:
            load_config(str(tmp_path / name))
        assert message in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_with_a_mark_of_its_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.yaml").write_text("data:\r\n  shards: 北京/é\r\n", encoding=encoding)
    assert load_config(str(tmp_path / "a.yaml")).data.shards == "北京/é"


def test_aliases_of_aliases_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 99))]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    started = time.process_time()
    with pytest.raises(ValueError, match="a0 is a section; expected keys below it"):
        load_config(str(tmp_path / "a.yaml"))
    assert time.process_time() - started < 5


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize(
    ("setting", "text", "value"),
    [
        ("training.learning_rate", "1e-3", 1e-3),
        ("training.learning_rate", "7", 7.0),
        ("training.num_training_steps", "1e5", 100_000),
        ("training.num_training_steps", "1_000", 1000),
        ("training.cycle_steps", "null", None),
        ("training.compile", "no", False),
        ("training.compile", "On", True),
        ("training.fp16", "off", "fp32"),
        ("infrastructure.resume_from_checkpoint", "null", None),
        ("infrastructure.output_dir", "runs/a#1", "runs/a#1"),
        ("infrastructure.output_dir", "010", "010"),
        ("infrastructure.output_dir", "2020-01-01", "2020-01-01"),
        ("infrastructure.output_dir", "yes", "yes"),
        ("infrastructure.output_dir", "~/runs", "/home/me/runs"),
        ("infrastructure.logging_dir", "$HOME/l ${RUN}", "/home/me/l 7"),
        ("data.shards", "cost$5", "cost$5"),
    ],
)
def test_text_means_the_same_in_a_file_and_on_the_command_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    text: str,
    value: object,
    in_file: bool,
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("RUN", "7")
    section, key = setting.split(".")
    low_rate = ["training.min_learning_rate=0"]
    (tmp_path / "a.yaml").write_text(f"{section}:\n  {key}: {text}\n")
    config = (
        load_config(str(tmp_path / "a.yaml"), low_rate)
        if in_file
        else load_config(None, [*low_rate, f"{setting}={text}"])
    )
    found = getattr(getattr(config, section), {"fp16": "precision"}.get(key, key))
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["runs/a #1", "a: b", "[x]", "*x", "!!str x", '"q"', "{x", "'"])
def test_a_path_on_the_command_line_is_what_the_shell_gave(text: str) -> None:
    assert (
        load_config(None, [f"infrastructure.output_dir={text}"]).infrastructure.output_dir == text
    )


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([], "c.json: is []; expected settings in sections"),
        ({"training": 3}, "c.json: training is a section; expected keys below it"),
        ({"training": {"save_steps": [1]}}, "c.json: training.save_steps is [1]; expected a whole"),
        ({"training": {"save_steps": True}}, "training.save_steps is True; expected a whole"),
        ({"training": {"save_steps": 10**30}}, "expected a whole number below 2**63"),
        ({"training": {"weight_decay": float("nan")}}, "training.weight_decay is nan; expected a"),
        ({"data": {"shards": {}}}, "data.shards is {}; expected text"),
        ({"x": {"y": 1}}, "c.json: no section 'x'"),
    ],
)
def test_settings_of_a_checkpoint_that_cannot_be_are_named(tree: object, message: str) -> None:
    with pytest.raises(ValueError, match=r"^c\.json: ") as caught:
        config_from_dict(tree, "c.json")
    assert message in str(caught.value)


def test_paths_in_a_checkpoints_settings_stay_as_they_are() -> None:
    tree = {"data": {"shards": "~/$HOME"}}
    assert config_from_dict(tree, "c.json").data.shards == "~/$HOME"


def test_the_learning_rate_warms_up_then_restarts_in_growing_cycles() -> None:
    config = TrainingConfig()
    rates = [learning_rate(step, config) for step in range(100_000)]
    assert rates[0] == 6e-4 / 2000
    assert rates[1999] == rates[2000] == 6e-4
    tops = [step for step in range(2001, 100_000) if rates[step] > rates[step - 1]]
    assert tops == [16_000, 44_000]  # Cycles of 14,000, 28,000 and 56,000 steps.
    assert all(rates[step] == 6e-4 for step in tops)
    assert min(rates[2000:]) == pytest.approx(6e-5, rel=1e-4)
    assert rates[-1] == pytest.approx(6e-5, rel=1e-4)
    assert rates[2000 + 7000] == pytest.approx((6e-4 + 6e-5) / 2)


def test_cycles_of_one_length() -> None:
    config = TrainingConfig(warmup_steps=0, cycle_steps=10, cycle_multiplier=1)
    rates = [learning_rate(step, config) for step in range(30)]
    assert rates[:10] == rates[10:20] == rates[20:]
    assert learning_rate(0, dataclasses.replace(config, warmup_steps=1)) == 6e-4


def test_a_cycle_of_one_step_is_no_work_however_late() -> None:
    config = TrainingConfig(warmup_steps=0, cycle_steps=1, cycle_multiplier=1)
    started = time.process_time()
    assert learning_rate(10**9, config) == 6e-4
    assert time.process_time() - started < 1


def test_a_changed_schedule_is_told_and_an_unchanged_one_is_not() -> None:
    before = TrainingConfig()
    for changes in (
        {"num_training_steps": 50_000},
        {"learning_rate": 1e-3},
        {"cycle_steps": 500},
        {"warmup_steps": 40_000},
    ):
        told = describe_change(before, dataclasses.replace(before, **changes), 30_000)
        assert told is not None
        assert told.startswith("the learning rate follows the new schedule: step 30,001 has ")
    for changes in ({"save_steps": 1}, {"min_learning_rate": 6e-5}, {"cycle_steps": 14_000}):
        assert describe_change(before, dataclasses.replace(before, **changes), 30_000) is None
    ended = dataclasses.replace(before, num_training_steps=20_000)
    assert describe_change(before, ended, 30_000) is None
