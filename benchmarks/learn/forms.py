"""What is compared, and at which size: the arms, and the forms of the comparison.

An arm is a shape and a recipe. Each differs from the one before it in one thing, so that causes
come apart; the first is nanoGPT's recipe (train.py and model.py of karpathy/nanoGPT: GPT-2's shape
without biases, AdamW with betas 0.9 and 0.95, decay 0.1, clipping at 1, a cosine to a tenth).
"""

from dataclasses import dataclass
from typing import Literal

Shape = Literal["gpt2", "llama"]
Settings = dict[str, object]

# nanoGPT's learning rate as shipped.
SHIPPED_RATE = 6e-4
# The share of a run's steps in which every arm's rate rises.
WARMUP_SHARE = 0.05


@dataclass(frozen=True)
class Arm:
    """A shape and a recipe, whose learning rate is tuned."""

    title: str
    shape: Shape
    settings: Settings


COSINE: Settings = {"training.schedule": "cosine"}
LINEAR: Settings = {"training.schedule": "linear_to_zero"}
MUON: Settings = LINEAR | {"training.optimizer": "muon"}
ARMS = {
    "nanogpt": Arm("nanoGPT: GPT-2's shape, AdamW, cosine to a tenth", "gpt2", COSINE),
    "llama": Arm("Llama's shape instead", "llama", COSINE),
    "linear": Arm("+ a line to zero instead of the cosine", "llama", LINEAR),
    "muon": Arm("+ Muon for the blocks' matrices", "llama", MUON),
    "init": Arm(
        "+ smaller o_proj and down_proj at first", "llama", MUON | {"model.init": "depth_scaled"}
    ),
}
# The arm that all others are compared with, by its own best rate and as shipped.
BASELINE = "nanogpt"


@dataclass(frozen=True)
class Form:
    """The size of a comparison; the learning rates are those that every arm starts to try."""

    # Of the models, by arms of Llama's shape; GPT-2's has an inner width of 4 D.
    model: Settings
    # Ids of the tokenizer: GPT-2's first merges.
    vocab_size: int
    training: Settings
    max_seq_length: int
    tokens_per_step: int
    # N: the tokens of every run but the shortened ones.
    tokens: int
    arms: tuple[str, ...]
    rates: tuple[float, ...]
    num_seeds: int
    # The shares of N that the best recipe of ours is run with, its whole schedule shortened.
    shares: tuple[float, ...]
    held_out_windows: int
    # The loss that is to be reached; None = the mean of the baseline's.
    target: float | None = None

    def count_steps(self, share: float = 1.0) -> int:
        """Steps of a run of a share of N tokens.

        >>> FORMS["small"].count_steps(0.5) * 2 == FORMS["small"].count_steps()
        True
        """
        return max(round(self.tokens * share / self.tokens_per_step), 1)


SMALL = Form(
    # GPT-2's blocks have 12 D^2 weights, these 1 % fewer, as 336 is a multiple of 16.
    model={
        "model.hidden_size": 128,
        "model.num_hidden_layers": 4,
        "model.num_attention_heads": 4,
        "model.intermediate_size": 336,
    },
    vocab_size=4096,
    training={"training.precision": "fp32", "training.batch_size_per_device": 8},
    max_seq_length=128,
    tokens_per_step=1024,
    tokens=245_760,
    arms=tuple(ARMS),
    rates=(2.4e-3, 4.8e-3, 9.6e-3),
    num_seeds=3,
    shares=(0.35, 0.5, 0.7, 0.85),
    held_out_windows=512,
)
# The field's test: 124 M parameters in steps of 524,288 tokens to a loss of 3.28 on 10,485,760
# tokens of FineWeb, which llm.c's run of nanoGPT's recipe takes 10 G tokens for (modded-nanogpt).
GPU = Form(
    model={
        "model.hidden_size": 768,
        "model.num_hidden_layers": 12,
        "model.num_attention_heads": 12,
        "model.intermediate_size": 2048,
    },
    vocab_size=50257,
    training={"training.precision": "bf16", "training.batch_size_per_device": 64},
    max_seq_length=1024,
    tokens_per_step=524_288,
    tokens=3_250_585_600,
    arms=("init",),
    rates=(1.2e-3, 2.4e-3, 4.8e-3),
    num_seeds=3,
    shares=(0.7, 0.85),
    held_out_windows=10_240,
    target=3.28,
)
FORMS = {"small": SMALL, "gpu": GPU}
