"""The numbers that define a model, and what follows: its parameter count and FLOPs per token.

Names match the settings and config.json, where those of RoPE are in rope_parameters without their
`rope_`. Nothing here imports torch.
"""

import math
import reprlib
from dataclasses import Field, dataclass, fields, replace
from typing import Any, Literal, Self, get_args

# What weights may be kept in to write texts: less to read is less time.
Kept = Literal["fp32", "bf16", "fp16", "int8"]
KEPT: tuple[Kept, ...] = get_args(Kept)
AttentionKernel = Literal["auto", "flash", "cudnn", "efficient", "math", "fa3"]
Init = Literal["normal", "depth_scaled"]
RopeType = Literal["default", "linear", "dynamic", "yarn", "llama3"]

MAX_VOCAB_SIZE = 2**31  # The ids that a set can have, and int32.
# GPT-2's, which "auto" stands for as long as no set is known.
DEFAULT_VOCAB_SIZE = 50257
MAX_NUMBER = 1e18  # Far above any use, and within int64 and fp32.
# The settings that each way of stretching the context reads.
ROPE_SETTINGS: dict[RopeType, tuple[str, ...]] = {
    "default": (),
    "linear": ("rope_factor",),
    "dynamic": ("rope_factor",),
    "yarn": (
        "rope_factor",
        "rope_original_max_position_embeddings",
        "rope_beta_fast",
        "rope_beta_slow",
        "rope_attention_factor",
        "rope_truncate",
    ),
    "llama3": (
        "rope_factor",
        "rope_original_max_position_embeddings",
        "rope_low_freq_factor",
        "rope_high_freq_factor",
    ),
}


@dataclass(frozen=True)
class ModelConfig:
    """Section `model` of a run's settings: a Llama-shaped decoder.

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
    # Attention heads per block, which divide hidden_size.
    num_attention_heads: int = 32
    # Inner width of each block's feed-forward part.
    intermediate_size: int = 8192
    # Context length: the most tokens that the model can attend to, before what rope_type adds.
    max_position_embeddings: int = 2048
    # Standard deviation of the initial weights.
    initializer_range: float = 0.02
    # "normal" = all weights start with that deviation; "depth_scaled" = those of o_proj and
    # down_proj, which add to the residual stream, with 1/sqrt(2 * num_hidden_layers) of it.
    init: Init = "normal"
    # Epsilon of every RMSNorm, added to the mean square.
    layer_norm_eps: float = 1e-5
    # Base of the rotary embedding's frequencies.
    rope_theta: float = 10000.0
    # Heads of keys and values per block; several attention heads share each (grouped-query
    # attention). null = num_attention_heads, which is one for each.
    num_key_value_heads: int | None = None
    # Width of one attention head; null = an even share of hidden_size.
    head_dim: int | None = None
    # Whether the embedding is also the head.
    tie_word_embeddings: bool = True
    # How positions beyond those a model was first trained for are fitted in: "linear" and "dynamic"
    # stretch max_position_embeddings, "yarn" and "llama3" the original one; "default" = not at all.
    rope_type: RopeType = "default"
    # By how much rope_type stretches the context; at least 1. null = rope_type is "default".
    rope_factor: float | None = None
    # The context before it was stretched, for yarn and llama3; null = max_position_embeddings.
    rope_original_max_position_embeddings: int | None = None
    # For llama3: frequencies of fewer turns than this in the original context are stretched fully.
    rope_low_freq_factor: float = 1.0
    # For llama3: those of more turns than this are not stretched.
    rope_high_freq_factor: float = 4.0
    # For yarn: frequencies of more turns than this in the original context are not stretched.
    rope_beta_fast: float = 32.0
    # For yarn: those of fewer turns than this are stretched fully.
    rope_beta_slow: float = 1.0
    # For yarn: what rotated queries and keys are multiplied by; null = 0.1 ln(rope_factor) + 1.
    rope_attention_factor: float | None = None
    # For yarn: whether the range between both is widened to whole dimensions.
    rope_truncate: bool = True
    # A folder whose weights and shape a new run begins with: a checkpoint, a folder of checkpoints,
    # which stands for the newest of them, or any Llama-shaped model in Hugging Face's format. Other
    # settings of this section may be left out, or be the folder's; those of a settings file do not
    # count where the command line says this one. null = random weights.
    start: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "start":
                self._check(field)
        if self.num_ids > MAX_VOCAB_SIZE:
            raise ValueError(
                f"model.vocab_size is {self.vocab_size}; expected at most {MAX_VOCAB_SIZE}, "
                "as a set has no more ids"
            )
        if self.is_open:
            return  # Whether they go together shows with those of the folder.
        self._check_heads()
        self._check_rope()
        # A shape has one description: null, where a number says the same.
        for name, number in (
            ("num_key_value_heads", self.num_attention_heads),
            ("head_dim", self.hidden_size // self.num_attention_heads),
            ("rope_original_max_position_embeddings", self.max_position_embeddings),
        ):
            if getattr(self, name) == number:
                object.__setattr__(self, name, None)

    def _check(self, field: Field[Any]) -> None:
        """Raise ValueError unless a field has a value of its type, and numbers are above 0."""
        value, members = getattr(self, field.name), (field.type, *get_args(field.type))
        if isinstance(value, str | None) and value == field.default:
            return  # A word or null, which stands for a number.
        words = {"rope_type": tuple(ROPE_SETTINGS), "init": get_args(Init)}
        if bool in members or field.name in words:
            choices = (True, False) if bool in members else words[field.name]
            if type(value) not in (bool, str) or value not in choices:
                raise ValueError(
                    f"model.{field.name} is {reprlib.repr(value)}; expected one of "
                    f"{', '.join(map(str, choices))}"
                )
            return
        allowed = (int, float) if float in members else (int,)
        is_number = isinstance(value, allowed) and not isinstance(value, bool)
        if not is_number or not 0 < value < MAX_NUMBER:  # NaN compares as False, too.
            kind = "number" if float in members else "whole number"
            raise ValueError(
                f"model.{field.name} is {reprlib.repr(value)}; expected a {kind} above 0 and "
                f"below {MAX_NUMBER:g}"
            )

    def _check_heads(self) -> None:
        heads = self.num_attention_heads
        # transformers needs even shares where heads have a width of their own, too.
        divisor, shown = (2 * heads, "2 * num_attention_heads")
        if self.head_dim is not None:
            divisor, shown = heads, "num_attention_heads"
        if self.hidden_size % divisor != 0:
            raise ValueError(
                f"model.hidden_size is {self.hidden_size}; expected a multiple of {shown} = "
                f"{divisor}, as every head gets an even share of it"
            )
        if self.head_size % 2 != 0:
            raise ValueError(
                f"model.head_dim is {self.head_dim}; expected an even number, as RoPE turns pairs"
            )
        if heads % self.num_kv_heads != 0:
            raise ValueError(
                f"model.num_key_value_heads is {self.num_kv_heads}; expected a divisor of "
                f"num_attention_heads = {heads}, as equally many share each"
            )

    def _check_rope(self) -> None:
        used = ("rope_theta", "rope_type", *ROPE_SETTINGS[self.rope_type])
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name.startswith("rope_") and name not in used and value != field.default:
                owners = [kind for kind, names in ROPE_SETTINGS.items() if name in names]
                raise ValueError(
                    f"model.{name} is {value}, which model.rope_type={self.rope_type} does not "
                    f"read; leave it out, or set model.rope_type to {' or '.join(owners)}"
                )
        if "rope_factor" in used and (self.rope_factor is None or self.rope_factor < 1):
            raise ValueError(
                f"model.rope_factor is {self.rope_factor}; expected a number of at "
                f"least 1 with model.rope_type={self.rope_type}"
            )
        for kind, is_possible, needed in (
            ("dynamic", self.head_size > 2, "heads wider than 2"),
            ("yarn", self.rope_theta > 1, "model.rope_theta above 1"),
            (
                "yarn",
                self.rope_beta_fast >= self.rope_beta_slow,
                "model.rope_beta_fast of at least model.rope_beta_slow",
            ),
            (
                "llama3",
                self.rope_high_freq_factor > self.rope_low_freq_factor,
                "model.rope_high_freq_factor above model.rope_low_freq_factor",
            ),
        ):
            if self.rope_type == kind and not is_possible:
                raise ValueError(f"model.rope_type is {kind}, which needs {needed}")

    def fit(self, num_ids: int) -> Self:
        """The same model for a tokenizer with so many ids, if vocab_size is "auto".

        >>> ModelConfig().fit(32768).vocab_size, ModelConfig(vocab_size=300).fit(32768).vocab_size
        (32768, 300)
        """
        return replace(self, vocab_size=num_ids) if self.vocab_size == "auto" else self

    @property
    def is_open(self) -> bool:
        """Whether the shape is that of the folder in `start`, which has not been read yet."""
        return self.start is not None and self.vocab_size == "auto"

    @property
    def num_ids(self) -> int:
        """V: vocab_size as a number."""
        return DEFAULT_VOCAB_SIZE if self.vocab_size == "auto" else self.vocab_size

    @property
    def head_size(self) -> int:
        """K: head_dim as a number, the width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def num_kv_heads(self) -> int:
        """G: num_key_value_heads as a number."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def rope_original(self) -> int:
        """rope_original_max_position_embeddings as a number of tokens."""
        return self.rope_original_max_position_embeddings or self.max_position_embeddings

    @property
    def context(self) -> int:
        """The most tokens that the model can attend to, with what rope_type adds.

        >>> ModelConfig(rope_type="dynamic", rope_factor=4).context
        8192
        """
        if self.rope_type in ("linear", "dynamic"):
            return int(self.max_position_embeddings * (self.rope_factor or 1))
        if self.rope_type == "yarn":
            return max(
                self.max_position_embeddings, int(self.rope_original * (self.rope_factor or 1))
            )
        return self.max_position_embeddings

    def initial_deviation(self, name: str) -> float:
        """The standard deviation of the new weight of this name.

        >>> round(ModelConfig(init="depth_scaled").initial_deviation("mlp.down_proj.weight"), 5)
        0.00289
        """
        adds_to_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
        if self.init == "depth_scaled" and adds_to_stream:
            # There are two such additions in a block.
            return self.initializer_range / math.sqrt(2 * self.num_hidden_layers)
        return self.initializer_range

    @property
    def head_parameters(self) -> int:
        """E: the weights of the head, and as many of the embedding."""
        return self.num_ids * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        """The weights of the embedding and the head: E if they are the same, else 2 E."""
        return self.head_parameters * (1 if self.tie_word_embeddings else 2)

    @property
    def block_matrix_parameters(self) -> int:
        """The weights of the blocks' matrices: all but embedding, head and norms."""
        return self._num_matmul_parameters() - self.head_parameters

    def num_parameters(self) -> int:
        """Number of parameters; an embedding that is also the head counts once."""
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        lookup = self.embedding_parameters - self.head_parameters
        return self._num_matmul_parameters() + lookup + norms

    def flops_per_token(self, num_tokens: int) -> int:
        """Training FLOPs per token, in windows of `num_tokens` tokens.

        6 N + 12 L H K T (PaLM, Chowdhery et al. 2022, appendix B): N counts the weights in
        matrix products, so the head but not the embedding lookup; attention counts as if it were
        not causal. This is the convention of nanoGPT and of most published MFU figures.
        """
        return 6 * self._num_matmul_parameters() + 12 * self._num_products(num_tokens)

    def causal_flops_per_token(self, num_tokens: int) -> int:
        """The same with attention counted once for each pair of tokens that sees: 6 N + 6 L H K T.

        That is what a causal kernel computes, but for its half of the diagonal.
        """
        return 6 * self._num_matmul_parameters() + 6 * self._num_products(num_tokens)

    def _num_products(self, num_tokens: int) -> int:
        return self.num_hidden_layers * self.num_attention_heads * self.head_size * num_tokens

    def _num_matmul_parameters(self) -> int:
        """Of q and o, k and v, gate, up and down, and of the head."""
        heads = 2 * (self.num_attention_heads + self.num_kv_heads)
        attention = heads * self.head_size * self.hidden_size
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.num_hidden_layers * (attention + mlp) + self.head_parameters
