"""Saves beside training: the steps of a run that saves every few steps against one that never does.

never    no save at all
every    a save every --save-steps steps, each of the whole state
Both are our own loop on the same model and samples; the rounds take turns. The stall is what a
step with a save takes longer than the median of the others: the copy to host memory. It must not
be longer than a step.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch

import train.loop
from benchmarks.measure import Engine, Measured, make_parser, print_result, run_script, take_turns
from benchmarks.train.inputs import make_shards
from train.config import Config
from train.run import Run
from train.settings import load_config

PACKAGES = ("torch", "safetensors")
EVERY, NEVER = "velocity", "never"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = make_parser("The step time of a run that saves, beside one that does not.")
    parser.set_defaults(warmup_rounds=0)
    parser.add_argument("--config", default="tiny", help="the settings of the run")
    parser.add_argument("--steps", type=int, default=24, help="steps of a round")
    parser.add_argument("--warmup-steps", type=int, default=8, help="steps before, not timed")
    parser.add_argument("--save-steps", type=int, default=8, help="steps between saves")
    parser.add_argument("--folder", type=Path, help="where checkpoints go; else a temporary folder")
    parser.add_argument("settings", nargs="*", help="section.key=value, as -m train takes them")
    options = parser.parse_args()
    if options.warmup_steps < options.save_steps or options.steps < options.save_steps:
        parser.error("--steps and --warmup-steps: expected at least --save-steps")
    return options


def main() -> None:
    """Measure, and print the line."""
    options = parse_arguments()
    folder = options.folder
    del options.folder  # A path of the machine's owner.
    with tempfile.TemporaryDirectory(prefix="benchmark-save-", dir=folder) as name:
        scratch = Path(name)
        make_shards(scratch)
        engines = [
            Engine(kind, (), lambda kind=kind: lambda: measure(options, scratch, kind))  # type: ignore[misc]
            for kind in (EVERY, NEVER)
        ]
        results = take_turns(engines, options, lambda outputs: None)
        config = make_config(options, scratch, EVERY)
        work = {"num_parameters": config.model.num_parameters()}
        stalls = [figures["stall_steps"] for figures in results.rounds[EVERY]]
        print_result(
            "train.save", options, work, results, {"max_stall_steps": max(stalls)}, PACKAGES
        )


def make_config(options: argparse.Namespace, scratch: Path, kind: str) -> Config:
    """The settings of a round; checkpoints of earlier ones are gone."""
    steps = options.warmup_steps + options.steps
    settings = {
        "data.shards": scratch / "shards",
        "training.num_training_steps": steps + 1,  # After the last one, a run saves anyway.
        "training.save_steps": options.save_steps if kind == EVERY else 10 * steps,
        "training.save_total_limit": 1,
        "training.eval_windows": 0,
        "infrastructure.output_dir": scratch / f"checkpoints-{time.monotonic_ns()}",
    }
    overrides = [f"{name}={value}" for name, value in settings.items()]
    return load_config(options.config, [*options.settings, *overrides])


def measure(options: argparse.Namespace, scratch: Path, kind: str) -> Measured:
    """One run; a step is from the end of the step before to its own, with what lies between."""
    ends: list[float] = []
    with noting(ends):
        train.loop.train(make_config(options, scratch, kind))
    seconds = [after - before for before, after in pairwise(ends)]
    # seconds[i] is that of step i + 2: the save after step i + 1 delays it.
    timed = range(options.warmup_steps, options.warmup_steps + options.steps)
    saving = [seconds[i] for i in timed if (i + 1) % options.save_steps == 0]
    others = [seconds[i] for i in timed if (i + 1) % options.save_steps]
    plain = statistics.median(others)
    figures = {
        "step_seconds": statistics.median(seconds[i] for i in timed),
        "mean_step_seconds": statistics.fmean(seconds[i] for i in timed),
        "stall_steps": (statistics.median(saving) - plain) / plain,
    }
    return Measured(figures)


@contextmanager
def noting(ends: list[float]) -> Iterator[None]:
    """Note when each step of a run ends."""
    take_step = train.loop.take_step

    def take_and_note(run: Run) -> tuple[float, float]:
        taken = take_step(run)
        if run.rank.device.type == "cuda":
            torch.cuda.synchronize(run.rank.device)
        ends.append(time.perf_counter())
        return taken

    train.loop.take_step = take_and_note
    try:
        yield
    finally:
        train.loop.take_step = take_step


if __name__ == "__main__":
    run_script(main)
