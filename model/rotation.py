"""How fast each pair of a head turns from one position to the next, with its context stretched.

default   theta^(-2i / K), i = 0 ... K/2 - 1 (RoFormer, Su et al. 2021, section 3.2)
linear    all slower by `factor` (position interpolation, Chen et al. 2023)
dynamic   theta grows with the text once it is longer than the model's context ("NTK-aware")
yarn      fast pairs as they are, slow ones slower by `factor`, between both a ramp over the pairs;
          rotated vectors longer by `attention_factor` (YaRN, Peng et al. 2023, section 3)
llama3    the same with a ramp over the number of turns, and of the same length (Llama 3.1)

Definitions are those of transformers, where the keys of the same names are read. `dynamic` there
takes the longest row of a batch, and here each row's own length, so that a text does not depend on
those beside it. With a KV cache, both turn each token as at the length at which it was read, and
leave those before as they were: a cached text differs from one that is computed as a whole.

B rows, T tokens, K head size.
"""

import math

import torch
from torch import Tensor

from model.config import ModelConfig

Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (B or 1, 1, T, K / 2)


def make_rotation(positions: Tensor, config: ModelConfig) -> Rotation:
    """The rotary embedding's angles as cosines and sines (RoFormer, Su et al. 2021, section 3.2).

    Computed from the positions (B or 1, T) each time, in fp32: there is no table to go stale when a
    model is cast or moved.
    """
    angles = positions[:, None, :, None].float() * find_frequencies(positions, config)
    factor = find_length_factor(config)
    if factor == 1:
        return angles.cos(), angles.sin()
    return angles.cos() * factor, angles.sin() * factor


def find_frequencies(positions: Tensor, config: ModelConfig) -> Tensor:
    """Radians per position of each pair, (K / 2,) in fp32; for `dynamic`, (B, 1, 1, K / 2).

    `positions` (B or 1, T) are those of the tokens that are read.
    """
    pairs = torch.arange(0, config.head_size, 2, device=positions.device, dtype=torch.float32)
    theta: float | Tensor = config.rope_theta
    if config.rope_type == "dynamic":
        theta = stretch_theta(positions, config)
    frequencies = 1.0 / (theta ** (pairs / config.head_size))
    factor = config.rope_factor or 1.0
    if config.rope_type == "linear":
        return frequencies / factor
    if config.rope_type == "yarn":
        share = ramp_over_pairs(config, positions.device)
    elif config.rope_type == "llama3":
        turns = config.rope_original * frequencies / (2 * math.pi)
        low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
        share = ((high - turns) / (high - low)).clamp(0, 1)
    else:
        return frequencies
    return frequencies * (share / factor + (1 - share))


def stretch_theta(positions: Tensor, config: ModelConfig) -> Tensor:
    """The base for texts that reach to the last of `positions` (B or 1, T): (B or 1, 1, 1, 1)."""
    context, factor, size = config.max_position_embeddings, config.rope_factor, config.head_size
    assert factor is not None
    lengths = (positions.amax(-1) + 1).clamp(min=context).float()[:, None, None, None]
    return config.rope_theta * (factor * lengths / context - (factor - 1)) ** (size / (size - 2))


def ramp_over_pairs(config: ModelConfig, device: torch.device) -> Tensor:
    """How much of the stretch each pair takes, (K / 2,): 0 for the fastest, 1 for the slowest."""
    size, original = config.head_size, config.rope_original

    def find_pair(turns: float) -> float:
        """Which pair turns so often within the original context."""
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = find_pair(config.rope_beta_fast), find_pair(config.rope_beta_slow)
    if config.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    width = high - low or 0.001
    pairs = torch.arange(size // 2, device=device, dtype=torch.float32)
    return ((pairs - low) / width).clamp(0, 1)


def find_length_factor(config: ModelConfig) -> float:
    """What rotated queries and keys are multiplied by; 1 except for yarn."""
    if config.rope_type != "yarn":
        return 1.0
    if config.rope_attention_factor is not None:
        return config.rope_attention_factor
    assert config.rope_factor is not None
    return find_yarn_factor(config.rope_factor)


def find_yarn_factor(factor: float) -> float:
    """What yarn multiplies by for a context that is `factor` times as long, unless it is told.

    YaRN, section 3.4: sqrt(1 / t). llama.cpp multiplies this by a file's rope.scaling.attn_factor.

    >>> round(find_yarn_factor(4.0), 6)
    1.138629
    """
    return 0.1 * math.log(factor) + 1
