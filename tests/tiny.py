"""A tokenizer and models small enough for tests: made here, random, and quick."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model.config import ModelConfig
from model.transformer import Transformer

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "A model learns from text; text comes in shards, and shards come from documents.",
    "She said: it's 2026, we'd rather not. naïve café 北京 🙂",
)


def make_tokenizer_json() -> str:
    """A byte-level BPE of 300 tokens like GPT-2's, in which <|endoftext|> is token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


TOKENIZER_JSON = make_tokenizer_json()


def make_tokenizer() -> Tokenizer:
    """That tokenizer, to which text that spells <|endoftext|> is text."""
    tokenizer = Tokenizer.from_str(TOKENIZER_JSON)
    tokenizer.encode_special_tokens = True
    return tokenizer


# Weights ten times as large as usual, so that random models disagree with each other and do not
# repeat one token.
CONFIG = ModelConfig(
    vocab_size=300,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=128,
    initializer_range=0.2,
)


def make_model(config: ModelConfig = CONFIG, seed: int = 0) -> Transformer:
    """A model with random weights, the norms' too."""
    torch.manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.uniform_(0.5, 1.5)
    return model


@contextmanager
def staying_compiled(model: Transformer) -> Iterator[None]:
    """What happens here may compile no block, and must leave code, modes and random numbers be."""
    compiled = []
    torch._dynamo.reset()  # Code is compiled a few times only in a process.

    def compile_nothing(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    model.compile_blocks(backend=compile_nothing)  # type: ignore[arg-type]
    calls = [block._compiled_call_impl for block in model.model.layers]
    state = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert [block._compiled_call_impl for block in model.model.layers] == calls
    assert not compiled
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.int64))
    assert compiled
