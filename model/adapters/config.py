"""What an adapter is: its kind, its rank and scale, and the matrices that it is on. No torch.

The names of the matrices are those of peft's `target_modules`.
"""

import math
from dataclasses import dataclass
from typing import Literal

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
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"an adapter's alpha is {self.alpha}; expected a number above 0")

    @property
    def scale(self) -> float:
        """What the adapter's product is multiplied by: alpha / rank.

        >>> AdapterConfig(rank=8, alpha=16).scale
        2.0
        """
        return self.alpha / (math.sqrt(self.rank) if self.is_rank_stabilized else self.rank)


def check_targets(targets: tuple[str, ...], setting: str) -> None:
    """ValueError, naming the setting, unless these are linear layers of a block, each once."""
    unknown = [name for name in targets if name not in TARGETS]
    if unknown or not targets or len({*targets}) < len(targets):
        found = repr(unknown[0])[:60] if unknown else "a name twice" if targets else "no names"
        raise ValueError(f"{setting}: {found}; expected some of {', '.join(TARGETS)}, each once")
