"""Tokens per second, MFU and memory: how they are computed.

MFU counts, per token, 6 FLOPs for each matrix weight plus 12 L D T for attention, not halved for
causality (PaLM: Chowdhery et al. 2022, appendix B), against the dense peak in the vendor's data
sheet. `mfu_causal` has 6 L D T in its place, which is what a causal kernel computes. T is the
window's length in both, with data.attention=document too, where attention computes less: so figures
of all runs are of one convention.
"""

import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from train.gpus import find_peak_flops
from train.training_config import Precision


def find_device_peak(device: torch.device, precision: Precision) -> float | None:
    """The device's peak in FLOP/s; None for a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    return find_peak_flops(torch.cuda.get_device_name(device), precision)


def measure_peak_memory(device: torch.device) -> int:
    """The most bytes this process has had: of GPU memory, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would also count what the launching process had.
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        if lines:
            return int(lines[0].split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # In bytes on macOS.


class Speed:
    """Adds up loss, steps and the time they took, from one logged step to the next."""

    def __init__(
        self,
        flops_per_token: int,
        causal_flops_per_token: int,
        peak_flops: float | None,
        device: torch.device,
    ) -> None:
        self.flops_per_token = flops_per_token
        self.causal_flops_per_token = causal_flops_per_token
        self.peak_flops = peak_flops  # of all ranks together
        self.device = device
        # The largest loss, and its step.
        self.largest: tuple[float, int] | None = None
        self._reset()

    @contextmanager
    def measure_step(self) -> Iterator[None]:
        """Time a step. It ends by reading its loss, so the device has finished it."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started
        self.num_steps += 1

    def add_step(self, loss: float, step: int, num_tokens: int) -> None:
        """Add a step's tokens, and its loss to the mean, unless it is not finite."""
        self.num_tokens += num_tokens
        if math.isfinite(loss):
            self.total_loss += loss
            self.num_losses += 1
            self.largest = max(self.largest or (loss, step), (loss, step))

    def take(self) -> dict[str, float | None]:
        """The figures since the last call, without time for checkpoints and evaluations."""
        tokens_per_second = compute_rate(self.num_tokens, self.seconds)
        figures: dict[str, float | None] = {
            "loss": self.total_loss / self.num_losses if self.num_losses else None,
            # The mean hides which step a spike was at, and with it the documents that made it.
            "largest_loss": self.largest and self.largest[0],
            "largest_loss_step": self.largest and self.largest[1],
            "tokens_per_second": tokens_per_second,
            "mfu": compute_mfu(tokens_per_second, self.flops_per_token, self.peak_flops),
            "mfu_causal": compute_mfu(
                tokens_per_second, self.causal_flops_per_token, self.peak_flops
            ),
            "step_seconds": self.seconds / max(self.num_steps, 1),
            "memory_bytes": measure_peak_memory(self.device),
        }
        self._reset()
        return figures

    def _reset(self) -> None:
        self.num_steps, self.num_tokens, self.seconds = 0, 0, 0.0
        self.num_losses, self.total_loss = 0, 0.0
        self.largest = None


def compute_rate(count: float, seconds: float) -> float:
    """The count per second; 0 if no time has passed.

    >>> compute_rate(4096, 2.0)
    2048.0
    """
    return count / seconds if seconds > 0 else 0.0


def compute_mfu(
    tokens_per_second: float, flops_per_token: int, peak_flops: float | None
) -> float | None:
    """The share of the peak that these tokens/s amount to; None if the peak is unknown.

    >>> round(compute_mfu(43_000, 11_489_193_984, 989.4e12), 3)
    0.499
    """
    return tokens_per_second * flops_per_token / peak_flops if peak_flops else None
