"""What an adapter is: its kind, its rank and scale, and the matrices that it is on. No torch.

The names of the matrices are those of peft's `target_modules`.
"""

import math
import reprlib
import sys
from dataclasses import dataclass
from typing import Literal

from model.config import ModelConfig

Kind = Literal["lora", "dora"]
# The linear layers of a block, in its order.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class AdapterConfig:
    """An adapter's shape; what it computes is in model/adapters/layers.py."""

    kind: Kind = "lora"
    rank: int = 8
    alpha: float = 16
    targets: tuple[str, ...] = TARGETS
    # Whether alpha is divided by the root of the rank (rsLoRA, Kalajdzievski 2023), as some of
    # peft's adapters have it.
    is_rank_stabilized: bool = False
    # Rows of the embedding, and of a head of its own, that are trained as well: new tokens.
    token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_targets(self.targets, "target_modules")
        if self.rank < 1:
            raise ValueError(f"an adapter's rank is {self.rank}; expected at least 1")
        if not 0 < self.alpha <= sys.float_info.max:  # Neither NaN nor too large to divide.
            raise ValueError(
                f"an adapter's alpha is {reprlib.repr(self.alpha)}; expected a number above 0"
            )

    @property
    def scale(self) -> float:
        """What the adapter's product is multiplied by: alpha / rank.

        >>> AdapterConfig(rank=8, alpha=16).scale
        2.0
        """
        return self.alpha / (math.sqrt(self.rank) if self.is_rank_stabilized else self.rank)

    def describe(self) -> str:
        """What it is, in words.

        >>> AdapterConfig("dora", 4, targets=("q_proj", "v_proj")).describe()
        'DoRA of rank 4 on q_proj and v_proj'
        """
        kind = {"lora": "LoRA", "dora": "DoRA"}[self.kind]
        *most, last = self.targets
        named = f"{', '.join(most)} and {last}" if most else last
        where = "all linear layers" if {*self.targets} == {*TARGETS} else named
        rows = f", with rows for {len(self.token_ids)} tokens" if self.token_ids else ""
        return f"{kind} of rank {self.rank} on {where}{rows}"

    def count(self, model: ModelConfig) -> int:
        """How many parameters it has on a model.

        >>> AdapterConfig(rank=8, targets=("q_proj",)).count(ModelConfig())
        786432
        """
        sizes = [list_sizes(model)[name] for name in self.targets]
        of_layer = sum(self.rank * (ins + outs) for ins, outs in sizes)
        of_layer += sum(outs for _, outs in sizes) if self.kind == "dora" else 0
        rows = len(self.token_ids) * model.hidden_size * (1 if model.tie_word_embeddings else 2)
        return model.num_hidden_layers * of_layer + rows


def list_sizes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Of each linear layer of a block, how many numbers go in and come out."""
    width, inner = model.hidden_size, model.intermediate_size
    heads, shared = (n * model.head_size for n in (model.num_attention_heads, model.num_kv_heads))
    sizes = (width, heads), (width, shared), (width, shared), (heads, width)
    return dict(zip(TARGETS, (*sizes, (width, inner), (width, inner), (inner, width)), strict=True))


def check_targets(targets: tuple[str, ...], setting: str) -> None:
    """ValueError, naming the setting, unless these are linear layers of a block, each once."""
    unknown = [name for name in targets if name not in TARGETS]
    if unknown or not targets or len({*targets}) < len(targets):
        found = repr(unknown[0])[:60] if unknown else "a name twice" if targets else "no names"
        raise ValueError(f"{setting}: {found}; expected some of {', '.join(TARGETS)}, each once")
