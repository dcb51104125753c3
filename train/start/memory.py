"""How much memory a rank needs, computed from the settings before anything is allocated.

The activations' bytes were measured at hidden 2048, inner 8192, fp16: 127,368 a token and block
eagerly and 86,408 compiled (docs/log.md), and are scaled by the sizes they consist of; how far the
estimate is off where it was checked is in docs/runs.md.
"""

from dataclasses import dataclass

from model.config import ModelConfig
from train.config import Config

# fp32 weights, their gradients, and AdamW's two means.
STATE_BYTES = 4 + 4 + 8
# In a checkpoint: fp32 weights and AdamW's two means.
CHECKPOINT_BYTES = 4 + 8
# Python with torch on a CPU; CUDA's context and the libraries' workspaces on a GPU.
BASE_BYTES = {"cpu": 400 * 10**6, "cuda": 1500 * 10**6, "mps": 1000 * 10**6}
# The most that a chunk's fp32 logits take (model/loss.py).
LOGITS_BYTES = {"cuda": 2**30}
CPU_LOGITS_BYTES = 128 * 2**20
# What `selective` keeps of a block where nothing is compiled.
EAGER_SELECTIVE_SHARE = 0.5


@dataclass(frozen=True)
class Memory:
    """Bytes that one rank needs."""

    # Weights, gradients and optimizer state: less is impossible.
    state: int
    # The most at once, as far as is known: state, activations, loss.
    peak: int


def estimate_memory(config: Config, device_type: str, world_size: int = 1) -> Memory:
    """What a rank needs on a device of this type ("cpu", "cuda", "mps").

    >>> estimate_memory(Config(), "cuda").state
    27418230784
    """
    model, training = config.model, config.training
    state = STATE_BYTES * model.num_parameters()
    tokens = training.batch_size_per_device * config.data.max_seq_length
    compiles = training.compile if training.compile is not None else device_type == "cuda"
    is_half = training.precision != "fp32"
    block = bytes_per_token(model, is_half, compiles)
    # The blocks' inputs, and one block at work.
    block_inputs = (2 if is_half else 4) * model.hidden_size
    if training.activation_checkpointing == "full":
        activations = tokens * (model.num_hidden_layers * block_inputs + block)
    elif training.activation_checkpointing == "selective":
        share = training.activation_memory_budget if compiles else EAGER_SELECTIVE_SHARE
        kept = block_inputs + round(share * (block - block_inputs))
        activations = tokens * (model.num_hidden_layers * kept + block)
    else:
        activations = tokens * model.num_hidden_layers * block
    head = model.num_ids * model.hidden_size
    copies = 2 * (model.num_parameters() - head) if is_half else 0
    # DDP's buckets beside the gradients.
    buckets = 4 * model.num_parameters() if world_size > 1 else 0
    loss = loss_bytes(model, tokens, is_half, device_type)
    base = BASE_BYTES.get(device_type, BASE_BYTES["cpu"])
    return Memory(state, base + state + buckets + copies + activations + loss)


def bytes_per_token(model: ModelConfig, is_half: bool, compiles: bool) -> int:
    """What one block keeps of one token for the backward pass.

    >>> bytes_per_token(ModelConfig(), is_half=True, compiles=False)
    126976
    >>> bytes_per_token(ModelConfig(), is_half=True, compiles=True)
    86016
    """
    hidden, inner = (18, 6) if compiles else (30, 8)
    in_half = hidden * model.hidden_size + inner * model.intermediate_size
    return in_half if is_half else 2 * in_half


def loss_bytes(model: ModelConfig, tokens: int, is_half: bool, device_type: str) -> int:
    """What the loss takes: three fp32 logits of a chunk and their gradient, the head's gradient."""
    limit = LOGITS_BYTES.get(device_type, CPU_LOGITS_BYTES)
    chunk_logits = min(4 * tokens * model.num_ids, limit)
    head = model.num_ids * model.hidden_size
    hidden = 2 * (2 if is_half else 4) * tokens * model.hidden_size
    return round(3.5 * chunk_logits) + (2 + 8 if is_half else 8) * head + hidden
