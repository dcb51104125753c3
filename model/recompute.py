"""What a block keeps for the backward pass, and what it computes again there.

none       everything is kept
selective  what is cheap to compute is computed again, and products and attention are kept
full       the block's input alone is kept, and the block computed twice

All three give the same losses and gradients. A compiled block that is `selective` is cut by torch's
compiler instead, which takes a budget of memory: see Transformer.compile_blocks.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

ActivationCheckpointing = Literal["none", "selective", "full"]

# What `selective` keeps the results of. Attention has another operator on each backend.
KEPT_OPERATORS: list[Any] = [
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]


def list_kept_operators() -> list[Any]:
    """KEPT_OPERATORS, and attention of all documents at once if it was ever loaded."""
    is_loaded = "torch.nn.attention.varlen" in sys.modules  # That takes seconds.
    return KEPT_OPERATORS + ([torch.ops.torch_attn._varlen_attn.default] if is_loaded else [])


def keep_all(block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """The block's result; autograd keeps what it needs."""
    return block(*inputs)


def keep_products(block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """The block's result; those of products and attention are kept, all else is computed again."""
    contexts = partial(create_selective_checkpoint_contexts, list_kept_operators())
    return _checkpoint(block, *inputs, context_fn=contexts)


def keep_inputs(block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """The block's result; only its inputs are kept."""
    return _checkpoint(block, *inputs)


def _checkpoint(*arguments: Any, **options: Any) -> Tensor:
    # No block draws random numbers, so the generator's state need not be kept.
    result = checkpoint(*arguments, use_reentrant=False, preserve_rng_state=False, **options)
    return cast(Tensor, result)


def keep_share(backend: str, memory_budget: float) -> Callable[..., Any]:
    """The compiler, told to keep about this share of what it would keep for the backward pass.

    1 is its own choice, 0 nothing but the inputs; between, it computes again what takes the fewest
    FLOPs (torch/_functorch/config.py, activation_memory_budget).
    """
    compiler: Any = torch._dynamo.lookup_backend(backend)

    def compile_graph(*arguments: Any, **options: Any) -> Any:
        config: Any = torch._functorch.config
        with config.patch(activation_memory_budget=memory_budget):
            return compiler(*arguments, **options)

    return compile_graph


RUNNERS: dict[ActivationCheckpointing, Callable[..., Tensor]] = {
    "none": keep_all,
    "selective": keep_products,
    "full": keep_inputs,
}
