"""The tree of settings: every key known, every value of its type, one way to override."""

import dataclasses
import json
from pathlib import Path

import pytest

from train.config import Config, TrainingConfig
from train.schedule import learning_rate
from train.settings import config_from_dict, config_to_dict, list_named_configs, load_config

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
    default["infrastructure"] |= {
        "output_dir": "./checkpoints",
        "logging_dir": "./logs",
        "resume_from_checkpoint": None,
    }
    default["distributed"]["backend"] = "nccl"
    assert loaded == default


def test_the_default_model_is_the_seeds() -> None:
    assert round(Config().model.num_parameters() / 1e6, 1) == 1713.6


@pytest.mark.parametrize("name", list_named_configs())
def test_named_configs_load(name: str) -> None:
    assert load_config(name) != Config()


def test_overrides_come_last_and_6e_4_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("training:\n  learning_rate: 5e-4\n  warmup_steps: 7\n")
    config = load_config(str(path), ["training.learning_rate=3e-4", "data.shards=/x/=y"])
    assert (config.training.learning_rate, config.training.warmup_steps) == (3e-4, 7)
    assert config.data.shards == "/x/=y"


def test_the_tree_round_trips_through_json() -> None:
    config = load_config("tiny", ["training.cycle_steps=null", "training.compile=false"])
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config))), "x") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lr=1", "no key 'training.lr'; expected one of training.batch_size_per_device, "),
        ("training.learning_rat=1", "no key 'training.learning_rat'; did you mean training.learni"),
        ("trainin.x=1", "no section 'trainin'; did you mean training?"),
        ("training.warmup_steps=1.5", "training.warmup_steps is 1.5; expected a whole number"),
        ("training.warmup_steps=true", "training.warmup_steps is True; expected a whole number"),
        ("training.learning_rate=fast", "learning_rate is 'fast'; expected a number"),
        ("training.precision=fp8", "precision is 'fp8'; expected one of fp16, bf16, fp32"),
        ("training.cycle_steps=x", "cycle_steps is 'x'; expected a whole number or null"),
        ("training.compile=3", "compile is 3; expected true or false or null"),
        ("training", "expected section.key=value"),
        ("training.warmup_steps", "expected section.key=value"),
        ("model=3", "expected section.key=value"),
        ("model.hidden_dropout=0.1", "hidden_dropout is 0.1, which is not supported: the model"),
        ("model.hidden_act=gelu", "not supported: the model has SwiGLU, whose activation is silu"),
        ("data.max_seq_length=4096", "data.max_seq_length is 4096; the model's context, model.max"),
        ("training.weight_decay=.nan", "weight_decay is nan; expected a number"),
        ("training.eval_windows=-5", "training.eval_windows is -5; expected at least 0"),
        ("training.fp16=maybe", "training.fp16 is 'maybe'; expected true or false"),
        ("infrastructure.seed=99999999999999999999999", "expected 0 to 2**63 - 1"),
        ("data.dataset_name=a/b", "not supported: velocity prep --dataset decides"),
        ("training.save_steps=0", "training.save_steps is 0; expected at least 1"),
        ("training.min_learning_rate=1", "min_learning_rate is 1.0; expected a number from 0 to"),
        ("model.hidden_size=100", "model.hidden_size is 100; expected a multiple of"),
        ("tokenizer.tokenizer_name=llama", "tokenizer_name is 'llama'; expected 'gpt2'"),
        ("tokenizer.add_special_tokens=false", "add_special_tokens is false; shards always end a"),
    ],
)
def test_mistakes_name_the_key(override: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        load_config(None, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: 3\n", "training is a section; expected keys below it"),
        ("- a\n", "expected sections such as `training:`"),
        ("training: {\n", "not valid YAML"),
        ("training:\n  epochs: 3\n", "a.yaml: no key 'training.epochs'"),
    ],
)
def test_mistakes_in_a_file_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.yaml") as caught:
        load_config(str(path))
    assert message in str(caught.value)


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
