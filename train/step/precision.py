"""Which dtype a step computes in; weights, gradients and optimizer stay fp32."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from train.config import Precision

Autocast = Callable[[], AbstractContextManager[object]]

DTYPES: dict[Precision, torch.dtype] = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}


def make_autocast(device: torch.device, precision: Precision) -> Autocast:
    """A function that opens the context in which forward passes run."""
    if precision == "fp32":
        return nullcontext
    # Tensor cores could sum in 16 bits for a little speed; too coarse for sums of 8,192 products.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    return partial(torch.autocast, device.type, DTYPES[precision])


def check_precision(device: torch.device, precision: Precision) -> None:
    """Raise ValueError if bf16 is asked for and the GPU has none."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ValueError(
            f"training.precision is bf16, which {torch.cuda.get_device_name(device)} does not "
            "have; set training.precision=fp16"
        )
