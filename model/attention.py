"""Attention, and which of torch's kernels computes it: chosen for a whole run, and named.

torch chooses among flash (FlashAttention 2), efficient (xFormers' kernels), cudnn and math (plain
products) by what a device and a dtype can have. On Hopper (H100, H200) cuDNN's is faster than the
flash kernel that torch prefers, and FlashAttention 3 faster still, where its package is installed.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.config import AttentionKernel

BACKENDS: dict[str, SDPBackend] = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
    "fa3": SDPBackend.FLASH_ATTENTION,  # Its kernels take the place of torch's own.
}
FA3_PACKAGE = "flash_attn_interface"
HOPPER = 9  # The major number of its compute capability.


@dataclass(frozen=True)
class Heads:
    """What attention is computed on: everything that decides whether a kernel can do it."""

    device: torch.device
    dtype: torch.dtype
    num_heads: int
    # Of keys and values.
    num_kv_heads: int
    head_size: int
    num_tokens: int
    # Whether attention stays inside documents (model/documents.py).
    by_document: bool = False


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Causal attention of q (B, H, T, K) on k, v (B, G, n, K): (B, H, T, K).

    H / G heads in a row share keys and values. What each token sees is what a mask (B, 1, T, n)
    lets it. Without one, several tokens are a window or a prompt, where each sees itself and those
    before it, and n = T; a single one sees everything.
    """
    num_heads, num_kv_heads, is_window = q.shape[1], k.shape[1], q.shape[2] > 1
    is_causal = mask is None and is_window
    if num_heads == num_kv_heads:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
    if not is_window:
        # As tokens side by side, so that any kernel reads keys and values once.
        side_by_side = q.view(len(q), num_kv_heads, -1, q.shape[-1])
        y = F.scaled_dot_product_attention(side_by_side, k, v, attn_mask=mask)
        return y.flatten(1, 2).unsqueeze(2)
    if not shares_heads(q.device, q.dtype):
        k, v = (x.repeat_interleave(num_heads // num_kv_heads, 1) for x in (k, v))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=k.shape[1] != num_heads
    )


def shares_heads(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels for windows take fewer heads of keys than of queries.

    On CUDA that for fp32 does not, and without it torch would take plain products.
    """
    return not (device.type == "cuda" and dtype == torch.float32)


@contextmanager
def use_attention(wish: AttentionKernel, heads: Heads) -> Iterator[str]:
    """Compute attention inside with this kernel; yields the name of the one in effect.

    It holds for the process, so for compiled blocks and for what is computed again in the backward
    pass, too. Raises ValueError for a kernel that cannot do it here.
    """
    chosen = choose_kernel(heads) if wish == "auto" else wish
    with ExitStack() as stack:
        if chosen == "fa3":
            stack.enter_context(use_fa3(heads))
        if chosen is not None:
            # With a mask, as in sampling, not every kernel can do it.
            others = ("cudnn", "flash", "efficient", "math") if wish == "auto" else ("math",)
            order = [*dict.fromkeys(BACKENDS[name] for name in (chosen, *others))]
            stack.enter_context(sdpa_kernel(order, set_priority=True))
        kernel = find_kernel(heads)
        kernel = "fa3" if (chosen, kernel) == ("fa3", "flash") else kernel
        if wish not in ("auto", kernel):
            dtype = str(heads.dtype).removeprefix("torch.")
            raise ValueError(
                f"training.attention is {wish}, which torch does not have on {heads.device.type} "
                f"for heads of {heads.head_size} in {dtype}; set training.attention=auto"
            )
        # Compiled code is kept on disk by its graph, which does not say what was allowed.
        compiler: Any = torch.compiler.config
        tag = f"{compiler.cache_key_tag} attention={kernel}"
        stack.enter_context(compiler.patch(cache_key_tag=tag))
        yield kernel


def choose_kernel(heads: Heads) -> str | None:
    """fa3 or cudnn on Hopper in half precision; elsewhere None, which is torch's own choice.

    Inside documents flash instead of cudnn, which computes them one by one.
    """
    if heads.device.type != "cuda" or heads.dtype == torch.float32:
        return None
    if torch.cuda.get_device_capability(heads.device)[0] != HOPPER:
        return None
    if why_no_fa3(heads) is None:
        return "fa3"
    return "flash" if heads.by_document else "cudnn"


def why_no_fa3(heads: Heads) -> str | None:
    """What FlashAttention 3 lacks here; None if nothing."""
    if heads.device.type != "cuda":
        return f"it needs a Hopper GPU, and this is {heads.device.type}"
    if torch.cuda.get_device_capability(heads.device)[0] != HOPPER:
        return f"it needs a Hopper GPU, and this is {torch.cuda.get_device_name(heads.device)}"
    if heads.dtype == torch.float32:
        return "it needs training.precision fp16 or bf16"
    if not hasattr(torch.nn.attention, "activate_flash_attention_impl"):
        return f"it needs a newer torch than {torch.__version__}"
    if importlib.util.find_spec(FA3_PACKAGE) is None:
        return f"the package {FA3_PACKAGE} is not installed"
    try:
        importlib.import_module(FA3_PACKAGE)
    except Exception as error:  # Built for another torch, say.
        return f"the package {FA3_PACKAGE} cannot be loaded ({error})"
    if not all(hasattr(torch.ops.flash_attn_3, name) for name in ("fwd", "bwd")):
        return f"the package {FA3_PACKAGE} is one that torch cannot call; install a newer one"
    return None


@contextmanager
def use_fa3(heads: Heads) -> Iterator[None]:
    """FlashAttention 3 in place of torch's flash kernels; ValueError where it cannot be had."""
    reason = why_no_fa3(heads)
    if reason is not None:
        raise ValueError(f"training.attention is fa3: {reason}; set training.attention=auto")
    attention: Any = torch.nn.attention
    attention.activate_flash_attention_impl("FA3")
    try:
        yield
    finally:
        attention.restore_flash_attention_impl()


def find_kernel(heads: Heads) -> str:
    """The kernel that torch takes for such heads with what is allowed now."""
    if heads.device.type not in ("cpu", "cuda"):
        return "torch's own"
    shares = shares_heads(heads.device, heads.dtype)
    num_kv_heads = heads.num_kv_heads if shares else heads.num_heads

    def make(num_heads: int) -> Tensor:
        shape = (1, num_heads, heads.num_tokens, heads.head_size)
        return torch.empty(shape, dtype=heads.dtype, device=heads.device, requires_grad=True)

    q, k = make(heads.num_heads), make(num_kv_heads)
    is_shared = num_kv_heads != heads.num_heads
    number = torch._fused_sdp_choice(q, k, k, None, 0.0, True, enable_gqa=is_shared)
    names = {backend.value: name for name, backend in BACKENDS.items() if name != "fa3"}
    return names.get(number, "torch's own")
