"""Where a model computes: the device that is asked for, or the best one there is, and its dtype."""

import torch


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The device of this name; without one, a GPU if torch sees one (CUDA, then MPS), else the CPU.

    Raises ValueError, saying what there is, for a device that torch does not know or see.
    """
    if name is None:
        has_mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(
            f"device {str(name)!r} is unknown; expected cpu, cuda, cuda:N or mps"
        ) from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device {device} is not supported; expected cpu, cuda, cuda:N or mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {device}: torch sees no Apple GPU (MPS); use cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: torch sees no GPU; use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device}: torch sees {torch.cuda.device_count()} GPUs, numbered from 0"
        )
    return device


def choose_dtype(device: torch.device) -> torch.dtype:
    """What a model computes in when it only predicts: bf16 or fp16 with CUDA, elsewhere fp32."""
    if device.type != "cuda":
        return torch.float32
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16
