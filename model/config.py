"""The numbers that define a model, and what follows: its parameter count and FLOPs per token.

Names match the settings and config.json. Nothing here imports torch.
"""

import reprlib
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

AttentionKernel = Literal["auto", "flash", "cudnn", "efficient", "math", "fa3"]

MAX_VOCAB_SIZE = 2**31  # The ids that a set can have, and int32.
# GPT-2's, which "auto" stands for as long as no set is known.
DEFAULT_VOCAB_SIZE = 50257
MAX_NUMBER = 1e18  # Far above any use, and within int64 and fp32.


@dataclass(frozen=True)
class ModelConfig:
    """Section `model` of a run's settings: a Llama-shaped decoder with tied embeddings.

    Raises ValueError, naming the key, for values that no model can have.

    >>> config = ModelConfig()
    >>> print(f"{config.num_parameters():,} parameters, {config.flops_per_token(2048):,} FLOPs")
    1,713,639,424 parameters, 11,489,193,984 FLOPs
    """

    # Rows of the embedding, one per token in the vocabulary; "auto" = as many as the tokenizer of
    # the set has.
    vocab_size: int | Literal["auto"] = "auto"
    # Width of the residual stream.
    hidden_size: int = 2048
    # Number of transformer blocks.
    num_hidden_layers: int = 24
    # Attention heads per block; they split hidden_size evenly.
    num_attention_heads: int = 32
    # Inner width of each block's feed-forward part.
    intermediate_size: int = 8192
    # Context length: the most tokens that the model can attend to.
    max_position_embeddings: int = 2048
    # Standard deviation of the initial weights.
    initializer_range: float = 0.02
    # Epsilon of every RMSNorm, added to the mean square.
    layer_norm_eps: float = 1e-5
    # Base of the rotary embedding's frequencies.
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "vocab_size" and value == "auto":
                continue
            allowed = (int, float) if field.type is float else (int,)
            is_number = isinstance(value, allowed) and not isinstance(value, bool)
            if not is_number or not 0 < value < MAX_NUMBER:  # NaN compares as False, too.
                kind = "number" if field.type is float else "whole number"
                raise ValueError(
                    f"model.{field.name} is {reprlib.repr(value)}; expected a {kind} above 0 and "
                    f"below {MAX_NUMBER:g}"
                )
        if self.num_ids > MAX_VOCAB_SIZE:
            raise ValueError(
                f"model.vocab_size is {self.vocab_size}; expected at most {MAX_VOCAB_SIZE}, "
                "as a set has no more ids"
            )
        if self.hidden_size % (2 * self.num_attention_heads) != 0:
            raise ValueError(
                f"model.hidden_size is {self.hidden_size}; expected a multiple of 2 * "
                f"num_attention_heads = {2 * self.num_attention_heads}, as every head gets an "
                "even share of it"
            )

    def fit(self, num_ids: int) -> Self:
        """The same model for a tokenizer with so many ids, if vocab_size is "auto".

        >>> ModelConfig().fit(32768).vocab_size, ModelConfig(vocab_size=300).fit(32768).vocab_size
        (32768, 300)
        """
        return replace(self, vocab_size=num_ids) if self.vocab_size == "auto" else self

    @property
    def num_ids(self) -> int:
        """V: vocab_size as a number."""
        return DEFAULT_VOCAB_SIZE if self.vocab_size == "auto" else self.vocab_size

    @property
    def head_size(self) -> int:
        """K: the width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def num_parameters(self) -> int:
        """Number of parameters; the embedding, which is also the head, counts once."""
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return self._num_matmul_parameters() + norms

    def flops_per_token(self, num_tokens: int) -> int:
        """Training FLOPs per token, in windows of `num_tokens` tokens.

        6 N + 12 L D T (PaLM, Chowdhery et al. 2022, appendix B): N counts the weights in
        matrix products, so the head but not the embedding lookup; attention counts as if it were
        not causal. This is the convention of nanoGPT and of most published MFU figures.
        """
        attention = 12 * self.num_hidden_layers * self.hidden_size * num_tokens
        return 6 * self._num_matmul_parameters() + attention

    def causal_flops_per_token(self, num_tokens: int) -> int:
        """The same with attention counted once for each pair of tokens that sees: 6 N + 6 L D T.

        That is what a causal kernel computes, but for its half of the diagonal.
        """
        attention = 6 * self.num_hidden_layers * self.hidden_size * num_tokens
        return 6 * self._num_matmul_parameters() + attention

    def _num_matmul_parameters(self) -> int:
        attention = 4 * self.hidden_size**2
        mlp = 3 * self.hidden_size * self.intermediate_size
        head = self.num_ids * self.hidden_size
        return self.num_hidden_layers * (attention + mlp) + head
