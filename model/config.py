"""The numbers that define a model, and what follows from them: its parameters, its FLOPs per token.

The names are those of the settings and of config.json. Nothing here imports torch.
"""

from dataclasses import dataclass, fields

MAX_VOCAB_SIZE = 65536  # Token ids are stored as uint16.


@dataclass(frozen=True)
class ModelConfig:
    """Section `model` of a run's settings: a Llama-shaped decoder with tied embeddings.

    Raises ValueError, naming the key, for numbers that no model can have.

    >>> config = ModelConfig()
    >>> print(f"{config.num_parameters():,} parameters, {config.flops_per_token(2048):,} FLOPs")
    1,713,639,424 parameters, 11,489,193,984 FLOPs
    """

    # Rows of the embedding, one for each token of the vocabulary.
    vocab_size: int = 50257
    # Width of the residual stream.
    hidden_size: int = 2048
    # Transformer blocks.
    num_hidden_layers: int = 24
    # Attention heads a block; they share hidden_size evenly.
    num_attention_heads: int = 32
    # Width inside the feed-forward part of a block.
    intermediate_size: int = 8192
    # The context: the longest row of tokens that the model reads.
    max_position_embeddings: int = 2048
    # Standard deviation of the initial weights.
    initializer_range: float = 0.02
    # Added to the mean square in every RMSNorm.
    layer_norm_eps: float = 1e-5
    # Base of the rotary embedding's wavelengths.
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            allowed = (int,) if field.type is int else (int, float)
            if not isinstance(value, allowed) or isinstance(value, bool) or not value > 0:
                kind = "whole number" if field.type is int else "number"
                raise ValueError(f"model.{field.name} is {value!r}; expected a {kind} above 0")
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
        """K: the width that one attention head sees."""
        return self.hidden_size // self.num_attention_heads

    def num_parameters(self) -> int:
        """Parameters, the embedding that is also the head counted once."""
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return self._num_matmul_parameters() + norms

    def flops_per_token(self, num_tokens: int) -> int:
        """FLOPs that training spends on each token of a window of `num_tokens` tokens.

        6 N + 12 L D T (PaLM, Chowdhery et al. 2022, appendix B): N counts the weights that are
        multiplied by, so the head and not the look-up in the embedding; attention counts as if it
        were not causal. The convention of nanoGPT and of most published MFU figures.
        """
        attention = 12 * self.num_hidden_layers * self.hidden_size * num_tokens
        return 6 * self._num_matmul_parameters() + attention

    def _num_matmul_parameters(self) -> int:
        attention = 4 * self.hidden_size**2
        mlp = 3 * self.hidden_size * self.intermediate_size
        head = self.vocab_size * self.hidden_size
        return self.num_hidden_layers * (attention + mlp) + head
