"""Linear layers with an adapter: LoRA (Hu et al. 2021) and DoRA (Liu et al. 2024).

    LoRA    y = W x + s B A x                              A (R, I), B (O, R), s = alpha / R
    DoRA    y = m (W x + s B A x) / |W + s B A|_row        m (O)

W (O, I) is the base's, and frozen. A begins as torch's linear layers do (kaiming-uniform with
a = sqrt(5), as in peft), B with zeros, and m with the norms of W's rows, so that an adapter
computes what its base does until it is trained. The norm is a constant to the gradient (DoRA,
section 4.3).

R rank, I and O the sizes of a layer's input and output.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from model.adapters.config import AdapterConfig
from model.adapters.rows import TokenRows, merge_rows, train_rows
from model.products import linear
from model.transformer import Linear, Transformer


class AdaptedLinear(Linear):
    """A linear layer of a model, whose weight it shares, with an adapter that can be off."""

    def __init__(self, base: Linear, config: AdapterConfig) -> None:
        with torch.device("meta"):
            super().__init__(base.in_features, base.out_features)
        self.weight = base.weight
        self.scale = config.scale
        self.is_on = True
        with base.weight.device:
            self.lora_A = Linear(base.in_features, config.rank)
            self.lora_B = Linear(config.rank, base.out_features)
        self.lora_magnitude_vector: nn.Parameter | None = None
        if not self.lora_B.weight.is_meta:
            nn.init.zeros_(self.lora_B.weight)
        if config.kind == "dora":
            self.lora_magnitude_vector = nn.Parameter(self.find_norms())

    def forward(self, x: Tensor) -> Tensor:
        y = linear(x, self.weight)
        if not self.is_on:
            return y
        y = y + self.scale * cast(Tensor, self.lora_B(self.lora_A(x)))
        if self.lora_magnitude_vector is None:
            return y
        # In bf16 a factor near 1 would be off by up to 0.4 %, for all of a row alike.
        change = self.lora_magnitude_vector / self.find_norms() - 1
        return y + change.to(y.dtype) * y

    @torch.no_grad()
    def find_norms(self) -> Tensor:
        """The norms (O) of the rows of W + s B A, in fp32."""
        with torch.autocast(self.weight.device.type, enabled=False):
            norms: Tensor = torch.linalg.vector_norm(self._sum(), dim=1)
            return norms

    @torch.no_grad()
    def merge(self) -> Tensor:
        """The weight (O, I) that alone computes the same, summed in fp32 and rounded once."""
        merged = self._sum()
        if self.lora_magnitude_vector is not None:
            merged *= (self.lora_magnitude_vector / self.find_norms()).unsqueeze(1)
        return merged.to(self.weight.dtype)

    def _sum(self) -> Tensor:
        """W + s B A (O, I) in fp32."""
        product = self.lora_B.weight.float() @ self.lora_A.weight.float()
        return self.weight.float() + self.scale * product


def add_adapter(model: Transformer, config: AdapterConfig) -> None:
    """Put an adapter on a model, in place; from then on only the adapter has gradients.

    ValueError if the model has one already. A is drawn from torch's generator.
    """
    if has_adapter(model):
        raise ValueError("the model has an adapter already; merge it first")
    for weight in model.parameters():
        weight.requires_grad_(False)
    for name, module in [*model.named_modules()]:
        parent, _, own = name.rpartition(".")
        if own in config.targets:
            assert isinstance(module, Linear), f"{name} is a {type(module).__name__}"
            setattr(model.get_submodule(parent), own, AdaptedLinear(module, config))
    if config.token_ids:
        train_rows(model, config.token_ids)


def has_adapter(model: nn.Module) -> bool:
    """Whether the model has an adapter."""
    return any(True for _ in list_adapted(model))


def list_adapted(model: nn.Module) -> Iterator[AdaptedLinear | TokenRows]:
    """The parts of a model's adapter."""
    return (module for module in model.modules() if isinstance(module, AdaptedLinear | TokenRows))


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Within this, the model computes what it did before it had an adapter."""
    parts = [part for part in list_adapted(model) if part.is_on]
    try:
        for part in parts:
            part.is_on = False
        yield
    finally:
        for part in parts:
            part.is_on = True


def merge_adapter(model: Transformer) -> None:
    """Add the adapter to the weights of the model, in place, which is a plain one again.

    ValueError if it has none: an adapter that was merged is not there to be merged twice.
    """
    if not has_adapter(model):
        raise ValueError("the model has no adapter to merge")
    for name, module in [*model.named_modules()]:
        if isinstance(module, AdaptedLinear):
            parent, _, own = name.rpartition(".")
            with torch.device("meta"):
                plain = Linear(module.in_features, module.out_features)
            plain.weight = nn.Parameter(module.merge(), requires_grad=False)
            setattr(model.get_submodule(parent), own, plain)
    merge_rows(model)
    for weight in model.parameters():
        weight.requires_grad_(True)
