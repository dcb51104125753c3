"""GPUs known by name: their memory, and the dense peak by which MFU is counted."""

import re
from dataclasses import dataclass

from train.training_config import Precision

GIGABYTE = 10**9
# Dense TFLOP/s, without sparsity, from the vendor's data sheets.
Peaks = dict[Precision, float]
HOPPER_SXM: Peaks = {"fp16": 989.4, "bf16": 989.4, "fp32": 66.9}
HOPPER_PCIE: Peaks = {"fp16": 756.0, "bf16": 756.0, "fp32": 51.2}
HOPPER_NVL: Peaks = {"fp16": 835.5, "bf16": 835.5, "fp32": 60.0}
A100: Peaks = {"fp16": 312.0, "bf16": 312.0, "fp32": 19.5}
V100: Peaks = {"fp16": 125.0, "fp32": 15.7}


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    # As people call it, and as the driver does.
    short: str
    full: str
    # As it is sold. A driver shows up to a tenth more; that is left for what is not estimated.
    gigabytes: int
    tflops: Peaks

    @property
    def num_bytes(self) -> int:
        """Its memory."""
        return self.gigabytes * GIGABYTE


# An unknown GPU gets no MFU, since a guess could be far off (the H100 comes in three kinds).
GPUS = [
    Gpu("H200", "NVIDIA H200", 141, HOPPER_SXM),
    Gpu("H100", "NVIDIA H100 80GB HBM3", 80, HOPPER_SXM),
    Gpu("H100 PCIe", "NVIDIA H100 PCIe", 80, HOPPER_PCIE),
    Gpu("H200 NVL", "NVIDIA H200 NVL", 141, HOPPER_NVL),
    Gpu("H100 NVL", "NVIDIA H100 NVL", 94, HOPPER_NVL),
    Gpu("A100 80GB", "NVIDIA A100-SXM4-80GB", 80, A100),
    Gpu("A100 40GB", "NVIDIA A100-SXM4-40GB", 40, A100),
    Gpu("A100 80GB PCIe", "NVIDIA A100 80GB PCIe", 80, A100),
    Gpu("A100 40GB PCIe", "NVIDIA A100-PCIE-40GB", 40, A100),
    Gpu("L40S", "NVIDIA L40S", 48, {"fp16": 362.0, "bf16": 362.0, "fp32": 91.6}),
    Gpu("L40", "NVIDIA L40", 48, {"fp16": 181.0, "bf16": 181.0, "fp32": 90.5}),
    Gpu("A10", "NVIDIA A10", 24, {"fp16": 125.0, "bf16": 125.0, "fp32": 31.2}),
    # With fp32 sums, as training needs them.
    Gpu("RTX 4090", "NVIDIA GeForce RTX 4090", 24, {"fp16": 165.2, "bf16": 165.2, "fp32": 82.6}),
    Gpu("RTX 3090", "NVIDIA GeForce RTX 3090", 24, {"fp16": 71.0, "bf16": 71.0, "fp32": 35.6}),
    Gpu("L4", "NVIDIA L4", 24, {"fp16": 121.0, "bf16": 121.0, "fp32": 30.3}),
    Gpu("V100 16GB", "Tesla V100-SXM2-16GB", 16, V100),
    Gpu("V100 32GB", "Tesla V100-SXM2-32GB", 32, V100),
    Gpu("T4", "Tesla T4", 16, {"fp16": 65.0, "fp32": 8.1}),
]


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, short or full; ValueError, with those known, for another one.

    >>> find_gpu("a100-80gb").full, find_gpu("NVIDIA H200").gigabytes
    ('NVIDIA A100-SXM4-80GB', 141)
    """
    for gpu in GPUS:
        if _simplify(name) in (_simplify(gpu.short), _simplify(gpu.full)):
            return gpu
    known = ", ".join(gpu.short for gpu in GPUS)
    raise ValueError(
        f"no GPU is known as {name!r:.80}; known are {known}; for another one give its memory: "
        "--gpu-memory 48"
    )


def find_peak_flops(device_name: str, precision: Precision) -> float | None:
    """The peak in FLOP/s of the device with this full name; None if it is unknown.

    >>> find_peak_flops("NVIDIA H100 80GB HBM3", "fp16")
    989400000000000.0
    >>> find_peak_flops("NVIDIA GeForce GTX 1080", "fp16") is None
    True
    """
    tflops = {gpu.full: gpu.tflops for gpu in GPUS}.get(device_name, {}).get(precision)
    return None if tflops is None else tflops * 1e12


def _simplify(name: str) -> str:
    """A name without blanks, dashes, case and NVIDIA."""
    return re.sub(r"[\s_-]+", "", name.lower()).removeprefix("nvidia")
