"""Training steps: our run beside a bare loop, transformers' Trainer, and the matrix rate.

velocity       train.run.build_run and train.loop.take_step
bare           the same model and AdamW: forward, backward, clip, step, and nothing else
transformers   Trainer, LlamaForCausalLM, fused AdamW; no logging, no saving
matrix         one large matrix product, again and again: the FLOP/s that the device has

All but the last start from the same weights and see the same windows in the same order, with the
same AdamW, the same clipping and the same constant learning rate, so their losses must agree step
by step. Each round of an engine runs in its own process, with its own memory peak; importing,
building and the first steps (compiling, warming up) are not timed. The ratio to `matrix` is the
share of the matrix rate that a run reaches by the convention of MFU.

    python -m benchmarks.train --threads 1                          4 layers of 256
    python -m benchmarks.train --threads 1 --config tiny            as quickstart trains
    python -m benchmarks.train --config 1.7b --precision bf16 --compile --engines velocity matrix \
      --batch-size 16 --accumulation-steps 4 --attention cudnn      on a GPU
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from benchmarks.measure import (
    OURS,
    Engine,
    Json,
    Measured,
    make_parser,
    print_result,
    run_script,
    take_turns,
)
from benchmarks.train.engines import measure_bare, measure_matrix, measure_velocity
from benchmarks.train.inputs import find_device, make_config, make_shards, make_weights
from benchmarks.train.trainer import measure_transformers
from train.settings import load_config
from train.start.memory import estimate_memory

PACKAGES = ("torch", "transformers", "accelerate", "numpy")
BARE = "bare"
TRANSFORMERS = "transformers"
MATRIX = "matrix"
MEASURES = {
    OURS: measure_velocity,
    BARE: measure_bare,
    TRANSFORMERS: measure_transformers,
    MATRIX: measure_matrix,
}
NEEDED = {TRANSFORMERS: ("transformers", "accelerate")}
# The sizes that have options: the setting of each, and what it is without --config.
SIZES = {
    "hidden-size": ("model.hidden_size", 256),
    "layers": ("model.num_hidden_layers", 4),
    "heads": ("model.num_attention_heads", 4),
    "intermediate-size": ("model.intermediate_size", 1024),
    "max-seq-length": ("data.max_seq_length", 256),
    "batch-size": ("training.batch_size_per_device", 4),
    "accumulation-steps": ("training.gradient_accumulation_steps", 1),
}
# How far apart the losses of a step may be; half precision rounds differently on the two sides.
MAX_DIFFERENCES = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 5e-2}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = make_parser("Training steps, beside transformers' Trainer.")
    parser.set_defaults(warmup_rounds=0)
    parser.add_argument("--config", help="sizes of this named configuration, where not given")
    for name, (setting, default) in SIZES.items():
        parser.add_argument(f"--{name}", type=int, help=f"{setting}; {default} without --config")
    parser.add_argument("--precision", choices=list(MAX_DIFFERENCES), default="fp32")
    parser.add_argument("--learning-rate", type=float, default=6e-4, help="constant")
    parser.add_argument(
        "--activation-checkpointing",
        choices=["none", "selective", "full"],
        default="none",
        help="full on both sides; selective is ours alone",
    )
    parser.add_argument(
        "--attention",
        choices=["auto", "flash", "cudnn", "efficient", "math", "fa3"],
        default="auto",
        help="the kernel of ours",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    parser.add_argument(
        "--engines", nargs="+", choices=list(MEASURES), default=list(MEASURES), help="ours always"
    )
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a round")
    parser.add_argument("--warmup-steps", type=int, default=2, help="steps before, not timed")
    parser.add_argument("--threads", type=int, help="of torch; else as many as it takes")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order")
    # How this script calls itself for one engine's round.
    parser.add_argument("--engine", choices=list(MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 1 or options.warmup_steps < 1:
        parser.error("--steps and --warmup-steps: expected at least 1")
    sizes = load_config(options.config) if options.config else None
    for name, (setting, default) in SIZES.items():
        section, _, key = setting.partition(".")
        key_default = default if sizes is None else getattr(getattr(sizes, section), key)
        attribute = name.replace("-", "_")
        if getattr(options, attribute) is None:
            setattr(options, attribute, key_default)
    if "auto" in (options.batch_size, options.accumulation_steps):
        parser.error(f"--config {options.config}: give --batch-size and --accumulation-steps")
    return options


def main() -> None:
    """Measure, or do one engine's round for the process that measures."""
    options = parse_arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.engine:
        print(json.dumps(MEASURES[options.engine](options, options.scratch)), flush=True)
        return
    del options.engine, options.scratch
    with tempfile.TemporaryDirectory(prefix="benchmark-train-") as name:
        compare_engines(options, Path(name))


def compare_engines(options: argparse.Namespace, scratch: Path) -> None:
    """Make shards and weights, measure, compare the losses, print the line."""
    config = make_config(options, scratch)
    make_shards(scratch)
    make_weights(config, scratch)
    differences: list[float] = []

    def check(outputs: Mapping[str, list[float]]) -> None:
        differences.extend(
            compare_losses(outputs[name], outputs[OURS], options.precision)
            for name in outputs.keys() - {OURS, MATRIX}
        )

    engines = [
        Engine(name, NEEDED.get(name, ()), lambda name=name: partial(run_process, name, scratch))
        for name in MEASURES
        if name in (OURS, *options.engines)
    ]
    results = take_turns(engines, options, check)
    work = {
        "num_parameters": config.model.num_parameters(),
        "flops_per_token": config.model.flops_per_token(config.data.max_seq_length),
        "causal_flops_per_token": config.model.causal_flops_per_token(config.data.max_seq_length),
        "estimated_memory_bytes": estimate_memory(config, find_device().type).peak,
        "tokens_per_step": options.batch_size * options.accumulation_steps * options.max_seq_length,
    }
    checks = {"max_loss_difference": max(differences, default=None)}
    print_result("train", options, work, results, checks, PACKAGES)


def run_process(engine: str, scratch: Path) -> Measured:
    """Run an engine's round in its own process, whose last line of output is the result."""
    command = [sys.executable, "-m", "benchmarks.train", *sys.argv[1:]]
    command += ["--engine", engine, "--scratch", str(scratch)]
    # Trainer would use every GPU it sees.
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": gpu,
        "PYTORCH_ALLOC_CONF": os.environ.get("PYTORCH_ALLOC_CONF", "expandable_segments:True"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    process = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=environment, check=False
    )
    if process.returncode:
        raise ValueError(f"{engine} failed with exit code {process.returncode}; see above")
    result: Json = json.loads(process.stdout.splitlines()[-1])
    return Measured(result["figures"], result["losses"])


def compare_losses(theirs: list[float], ours: list[float], precision: str) -> float:
    """The largest difference between the losses of a step; ValueError if it is too large."""
    differences = [abs(one - other) for one, other in zip(theirs, ours, strict=True)]
    for step, difference in enumerate(differences):
        if not difference <= MAX_DIFFERENCES[precision]:
            raise ValueError(
                f"step {step + 1}: Trainer's loss is {theirs[step]:.6f}, ours {ours[step]:.6f}; "
                "they do not train the same model, so no figures are given"
            )
    return max(differences)


if __name__ == "__main__":
    run_script(main)
