"""The models that are measured: random weights, the size that options say, what weights weigh."""

import argparse
from pathlib import Path

from model.checkpoints.folder import save_model
from model.checkpoints.seal import seal
from model.config import ModelConfig
from model.transformer import Transformer
from prep.tokenizer.gpt2 import VOCAB_SIZE, build_gpt2_json
from tests.tiny import make_model


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """The options of a model's size; 59 M parameters by default, most in the embedding."""
    parser.add_argument("--hidden-size", type=int, default=512, help="of the random model")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--intermediate-size", type=int, default=2048)


def make_model_config(options: argparse.Namespace, **others: float) -> ModelConfig:
    """The model that the options describe, with GPT-2's words."""
    return ModelConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=options.intermediate_size,
        **others,
    )


def write_checkpoint(folder: Path, config: ModelConfig, seed: int = 0) -> Path:
    """A sealed checkpoint with random weights and GPT-2's tokenizer."""
    save_model(folder, make_model(config, seed), build_gpt2_json())
    seal(folder)
    return folder


def count_bytes(model: Transformer) -> int:
    """The bytes of a model's weights; a head that is the embedding counts once."""
    tensors = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


def count_gguf_bytes(path: Path) -> int:
    """The bytes of a GGUF file's weights."""
    from gguf import GGUFReader

    return sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)
