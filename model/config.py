"""The numbers that define a model, and what follows: its parameter count and FLOPs per token.

Names match the settings and config.json. Nothing here imports torch.
"""

import reprlib
from dataclasses import dataclass, fields

MAX_VOCAB_SIZE = 65536  # Token ids are stored as uint16.
MAX_NUMBER = 1e18  # Far above any use, and within int64 and fp32.


@dataclass(frozen=True)
class ModelConfig:
    """Section `model` of a run's settings: a Llama-shaped decoder with tied embeddings.

    Raises ValueError, naming the key, for values that no model can have.

    >>> config = ModelConfig()
    >>> print(f"{config.num_parameters():,} parameters, {config.flops_per_token(2048):,} FLOPs")
    1,713,639,424 parameters, 11,489,193,984 FLOPs
    """

    # Rows of the embedding, one per token in the vocabulary.
    vocab_size: int = 50257
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
            allowed = (int,) if field.type is int else (int, float)
            is_number = isinstance(value, allowed) and not isinstance(value, bool)
            if not is_number or not 0 < value < MAX_NUMBER:  # NaN compares as False, too.
                kind = "whole number" if field.type is int else "number"
                raise ValueError(
                    f"model.{field.name} is {reprlib.repr(value)}; expected a {kind} above 0 and "
                    f"below {MAX_NUMBER:g}"
                )
        if self.vocab_size > MAX_VOCAB_SIZE:
            raise ValueError(
                f"model.vocab_size is {self.vocab_size}; expected at most {MAX_VOCAB_SIZE}, "
                "as token ids are stored in 16 bits"
            )
        if self.hidden_size % (2 * self.num_attention_heads) != 0:
            raise ValueError(
                f"model.hidden_size is {self.hidden_size}; expected a multiple of 2 * "
                f"num_attention_heads = {2 * self.num_attention_heads}, as every head gets an "
                "even share of it"
            )

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

    def _num_matmul_parameters(self) -> int:
        attention = 4 * self.hidden_size**2
        mlp = 3 * self.hidden_size * self.intermediate_size
        head = self.vocab_size * self.hidden_size
        return self.num_hidden_layers * (attention + mlp) + head
