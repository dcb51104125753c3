"""A model's numbers with a longer context: what changes in its RoPE, and nothing else.

theta     rope_theta is what is given, or becomes theta * s^(K / (K - 2)): the slowest pair turns s
          times slower, the fastest as before ("NTK-aware"; YaRN, Peng et al. 2023, section 3.1)
linear    all pairs turn s times slower (position interpolation, Chen et al. 2023)
yarn      model/rotation.py has both
llama3

s is how many times longer the context gets, K the head size.
"""

import math
from dataclasses import replace

from model.config import ModelConfig
from model.convert.options import Stretch


def stretch_context(
    config: ModelConfig, context: int, way: Stretch, theta: float | None = None
) -> ModelConfig:
    """The same model for texts of `context` tokens, which are more than it has.

    A context that was stretched before is stretched further in the same way, as if it were at once
    from the original one. Raises ValueError where that cannot be.

    >>> round(stretch_context(ModelConfig(), 8192, "theta").rope_theta)
    41829
    >>> stretch_context(ModelConfig(), 8192, "yarn").rope_factor
    4.0
    """
    check(config, context, way)
    if way == "theta":
        return replace(
            config,
            max_position_embeddings=context,
            rope_theta=find_theta(config, context) if theta is None else check_theta(config, theta),
        )
    if way == "linear":
        # transformers and vLLM multiply max_position_embeddings by the factor, so it stays.
        factor = find_factor(context, config.max_position_embeddings)
        return replace(config, rope_type=way, rope_factor=factor)
    factor = context / config.rope_original
    if way == "llama3":  # Whose factor may be less: Llama 3.1's is 8, for 16 times the context.
        factor = (config.rope_factor or 1) * context / config.context
    return replace(
        config,
        rope_type=way,
        rope_factor=factor,
        max_position_embeddings=context,
        rope_original_max_position_embeddings=config.rope_original,
    )


def check(config: ModelConfig, context: int, way: Stretch) -> None:
    """ValueError unless the context gets longer, in a way that goes with how it was stretched."""
    if context <= config.context:
        raise ValueError(
            f"--context is {context:,}; expected more than {config.context:,}, the model's context"
        )
    kind = config.rope_type
    if kind not in ("default", way):
        advice = (
            "convert the original model instead"
            if kind == "dynamic"
            else f"give --rope {kind}, or convert the original model instead"
        )
        raise ValueError(
            f"--rope is {way}, but the model's context was already extended with rope_type {kind}; "
            f"{advice}"
        )
    if config.rope_attention_factor is not None:
        raise ValueError(
            f"the model's yarn has its own attention_factor, {config.rope_attention_factor:g}, "
            f"which only suits rope_factor {config.rope_factor:g}; convert the original model "
            "instead"
        )


def find_theta(config: ModelConfig, context: int) -> float:
    """The base with which the slowest pair turns s times slower than before.

    >>> [round(find_theta(ModelConfig(), 2048 * s)) for s in (1, 2, 4)]
    [10000, 20452, 41829]
    """
    size = config.head_size
    if size == 2:
        raise ValueError(
            "--rope theta needs heads of a size above 2; choose another --rope, or give --theta"
        )
    return float(config.rope_theta * (context / config.context) ** (size / (size - 2)))


def check_theta(config: ModelConfig, theta: float) -> float:
    """The base that is given; ValueError for one with which positions would turn faster."""
    if not config.rope_theta < theta < math.inf:
        raise ValueError(
            f"--theta is {theta:g}; expected more than the model's rope_theta, "
            f"{config.rope_theta:g}"
        )
    return theta


def find_factor(context: int, original: int) -> float:
    """The factor by which an original context is stretched to at least `context` tokens.

    >>> all(int(n * find_factor(n + 97, n)) == n + 97 for n in range(1, 3000))
    True
    """
    factor = context / original
    return factor if int(original * factor) >= context else math.nextafter(factor, math.inf)
