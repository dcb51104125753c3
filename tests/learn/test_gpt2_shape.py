"""GPT-2's shape of benchmarks/learn, beside transformers' GPT2LMHeadModel."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.learn.gpt2_shape import GPT2
from model.config import ModelConfig
from train.ranks.distributed import Rank
from train.step.optimizer import make_optimizer
from train.training_config import TrainingConfig

CONFIG = ModelConfig(
    vocab_size=300,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=16,
)
# Of ours, by the end of transformers' name.
NAMES = {"attn.c_proj": "attn_c_proj", "mlp.c_proj": "mlp_c_proj", "attn.c_attn": "c_attn"}
NAMES |= {"mlp.c_fc": "c_fc"}


def make_peer(model: GPT2) -> Any:
    """transformers' model with the same weights, and without biases."""
    config = GPT2Config(
        vocab_size=300,
        n_positions=16,
        n_embd=32,
        n_layer=3,
        n_head=4,
        activation_function="gelu",
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )
    peer: Any = GPT2LMHeadModel(config)
    own = model.state_dict()
    for name, weight in peer.transformer.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(weight)
            continue
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        mine = own[name]
        # Their layers keep matrices the other way around.
        is_matrix = mine.dim() == 2 and name.startswith("h.")
        weight.data.copy_(mine.T if is_matrix else mine)
    return peer


@pytest.fixture
def model() -> GPT2:
    torch.manual_seed(0)
    made = GPT2(CONFIG)
    with torch.no_grad():
        for weight in made.parameters():
            # Larger than at first, so that every part of the model shows in the logits.
            weight.mul_(8) if weight.dim() == 2 else weight.uniform_(0.5, 1.5)
    return made


def test_it_computes_what_transformers_does(model: GPT2) -> None:
    peer = make_peer(model)
    tokens = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(1))
    logits = model(tokens)
    torch.testing.assert_close(logits, peer(tokens).logits, atol=1e-4, rtol=1e-4)
    targets = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(2))
    loss = model(tokens, targets)
    expected = nn.functional.cross_entropy(peer(tokens).logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(model.wte.weight.grad, peer.transformer.wte.weight.grad)
    c_attn = peer.transformer.h[0].attn.c_attn.weight.grad
    torch.testing.assert_close(model.h[0].c_attn.weight.grad, c_attn.T, atol=1e-5, rtol=1e-4)


def test_its_weights_start_as_nanogpts_do() -> None:
    torch.manual_seed(0)
    model = GPT2(ModelConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4))
    for name, weight in model.named_parameters():
        scale = 1 / math.sqrt(4) if name.endswith("c_proj.weight") else 1.0
        expected = 0.0 if weight.dim() == 1 else 0.02 * scale
        assert weight.std().item() == pytest.approx(expected, rel=0.1), name


def test_matrices_and_both_embeddings_decay_and_norms_do_not() -> None:
    model = GPT2(CONFIG)
    rank = Rank(0, 1, 0, torch.device("cpu"))
    decaying, rest = make_optimizer(model, TrainingConfig(), rank).param_groups
    assert decaying["weight_decay"] == 0.1
    assert rest["weight_decay"] == 0
    assert {id(p) for p in decaying["params"]} == {
        id(p) for p in model.parameters() if p.dim() == 2
    }
    assert any(p is model.wpe.weight for p in decaying["params"])
    assert decaying["betas"] == (0.9, 0.95)
