"""The figures of one engine's round of `benchmarks.train`, which has a process of its own."""

import argparse
import importlib
import time
from pathlib import Path

import torch

from benchmarks.measure import Figures, Json
from train.config import Config
from train.reports.throughput import compute_mfu, find_device_peak, measure_peak_memory


class Stopwatch:
    """Times the steps after the warmup; made once all is imported and before anything is built."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.warmup_steps = options.warmup_steps
        self.last_step = options.warmup_steps + options.steps
        self.device = device
        self.step = 0
        self.seconds = self.cpu_seconds = 0.0
        # Otherwise the optimizer would, at the first step.
        importlib.import_module("torch._dynamo")
        self.memory_before = measure_memory(device)

    def tick(self) -> None:
        """Count a finished step; the clock runs between the warmup and the last."""
        self.step += 1
        if self.step not in (self.warmup_steps, self.last_step):
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        sign = 1 if self.step == self.last_step else -1
        self.seconds += sign * time.perf_counter()
        self.cpu_seconds += sign * time.process_time()


def measure_memory(device: torch.device) -> int:
    """The most bytes this process has had: of GPU memory, or resident on a CPU.

    For a child process, getrusage on Linux reports at least what its parent had.
    """
    status = Path("/proc/self/status")
    if device.type == "cuda" or not status.exists():
        return measure_peak_memory(device)
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def describe_round(
    config: Config, options: argparse.Namespace, watch: Stopwatch, losses: list[float]
) -> Json:
    """The figures and the losses of a round."""
    tokens_per_step = options.batch_size * options.accumulation_steps * options.max_seq_length
    num_tokens = options.steps * tokens_per_step
    peak_memory = measure_memory(watch.device)
    figures: Figures = {
        "tokens_per_second": num_tokens / watch.seconds,
        "cpu_seconds_per_million_tokens": watch.cpu_seconds / num_tokens * 1e6,
        "peak_memory_bytes": peak_memory,
        "memory_growth_bytes": peak_memory - watch.memory_before,
    }
    flops_per_token = config.model.flops_per_token(options.max_seq_length)
    figures["flops_per_second"] = figures["tokens_per_second"] * flops_per_token
    peak_flops = find_device_peak(watch.device, config.training.precision)
    causal = config.model.causal_flops_per_token(options.max_seq_length)
    for name, flops in (("mfu", flops_per_token), ("mfu_causal", causal)):
        mfu = compute_mfu(figures["tokens_per_second"], flops, peak_flops)
        if mfu is not None:
            figures[name] = mfu
    return {"figures": figures, "losses": losses}
