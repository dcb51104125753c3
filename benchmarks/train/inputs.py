"""What all engines of `benchmarks.train` start from: settings, shards, weights, windows."""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from model.checkpoints.folder import save_model
from model.transformer import Transformer
from shards.disk.layout import TOKENIZER
from shards.order import SampleOrder
from shards.reader import open_shards
from train.config import Config, DistributedConfig
from train.ranks.distributed import choose_device
from train.settings import load_config


def make_config(options: argparse.Namespace, scratch: Path) -> Config:
    """Our settings of the run, with a constant learning rate."""
    settings = {
        "model.hidden_size": options.hidden_size,
        "model.num_hidden_layers": options.layers,
        "model.num_attention_heads": options.heads,
        "model.intermediate_size": options.intermediate_size,
        "model.max_position_embeddings": options.max_seq_length,
        "data.shards": scratch / "shards",
        "data.max_seq_length": options.max_seq_length,
        "training.batch_size_per_device": options.batch_size,
        "training.gradient_accumulation_steps": options.accumulation_steps,
        "training.precision": options.precision,
        "training.learning_rate": options.learning_rate,
        "training.min_learning_rate": options.learning_rate,
        "training.warmup_steps": 0,
        "training.num_training_steps": options.warmup_steps + options.steps,
        "training.activation_checkpointing": options.activation_checkpointing,
        "training.attention": options.attention,
        "training.compile": options.compile,
        "infrastructure.seed": options.seed,
        "infrastructure.output_dir": scratch / "checkpoints",
    }
    return load_config(None, [f"{name}={value}" for name, value in settings.items()])


def load_weights(model: Transformer, scratch: Path) -> None:
    """Replace the weights that this device's generator drew by those that both sides share."""
    weights = load_file(scratch / "weights" / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)


def make_window(sample: dict[str, torch.Tensor]) -> torch.Tensor:
    """The T + 1 tokens of a sample."""
    return torch.cat([sample["input_ids"], sample["labels"][-1:]])


def read_windows(config: Config, scratch: Path) -> list[dict[str, torch.Tensor]]:
    """The samples of our run, in its order, in the form that Trainer batches.

    Each has T tokens and their T targets; `shift_labels` holds targets that are shifted already.
    """
    stream = open_shards(scratch / "shards").stream("train")
    training = config.training
    order = SampleOrder(stream.num_tokens, config.data.max_seq_length, config.infrastructure.seed)
    num_samples = (
        training.num_training_steps
        * training.gradient_accumulation_steps
        * training.batch_size_per_device
    )
    starts = order.starts(np.arange(num_samples))
    ids = stream.windows(starts, order.max_seq_length + 1)
    windows = torch.from_numpy(ids.astype(np.int64))
    return [
        {"input_ids": window[:-1], "labels": window[1:], "shift_labels": window[1:]}
        for window in windows
    ]


def find_device() -> torch.device:
    """Where the engines compute."""
    return choose_device(DistributedConfig(), 0, 1)


def make_shards(scratch: Path) -> None:
    """Make shards of Python's documentation, all of it in train."""
    from prep.policy import Policy
    from prep.python_docs import write_python_docs
    from prep.run import Request, prepare

    text = scratch / "python-docs.jsonl"
    write_python_docs(text)
    policy = Policy(validation_fraction="0")
    prepare(
        Request(scratch / "shards", policy=policy, inputs=(str(text),), workers=1),
        say=lambda line: None,
    )


def make_weights(config: Config, scratch: Path) -> None:
    """Save the random weights that both start with, as a checkpoint folder."""
    torch.manual_seed(config.infrastructure.seed)
    tokenizer_json = (scratch / "shards" / TOKENIZER).read_text(encoding="utf-8")
    save_model(scratch / "weights", Transformer(config.model), tokenizer_json)
