"""The training command: parses its arguments, trains, and reports errors in one line.

torchrun --nproc_per_node 4 -m train [--config NAME|FILE] [section.key=value ...]
"""

import argparse
import os
import sys
from typing import Any

# On a CPU, waiting threads should sleep: by default they spin, and next to one busy process the run
# takes ten times as long (docs/log.md). This must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from shards.disk.names import quote
from shards.failure import describe_error, prepare_screen, reporting
from shards.screen import say, say_text
from train.config import Config
from train.settings import list_named_configs, load_config


class Parser(argparse.ArgumentParser):
    """A parser that prints what was typed as safely as all else is printed."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:
            super()._print_message(message, file)
        else:
            say_text(message)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="torchrun --nproc_per_node N -m train",
        description="Train on the shards that velocity prep made. Run the same command again to "
        "resume from the last checkpoint.",
    )
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        help=f"settings: a YAML file, or one of {', '.join(list_named_configs())}; "
        "the default is the 1.7 B model",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings to override"
    )
    return parser.parse_args(arguments)


def load_settings(arguments: argparse.Namespace) -> Config:
    """The settings; on an error, exits with one line, printed by the first rank only."""
    is_first = os.environ.get("RANK", "0") == "0"
    with reporting(arguments.debug, is_told=is_first):
        return load_config(arguments.config, arguments.overrides)


def describe_training_error(error: Exception) -> str:
    """The error in words, with its rank if that is not the first."""
    rank = int(os.environ.get("RANK", "0"))
    if isinstance(error, torch.OutOfMemoryError):
        error = ValueError(
            "the GPU's memory is full; set a smaller training.batch_size_per_device (and more "
            "training.gradient_accumulation_steps), or training.gradient_checkpointing=true"
        )
    return f"{f'rank {rank}: ' if rank else ''}{describe_error(error)}"


@record
def main() -> None:
    """Run the command; exits with 128 + the signal's number if a signal ended the run."""
    prepare_screen(sys.argv)
    arguments = parse_arguments(sys.argv[1:])
    config = load_settings(arguments)
    with reporting(arguments.debug, describe_training_error):
        from train.loop import train

        outcome = train(config)
    if os.environ.get("RANK", "0") == "0":
        say(describe_outcome(config, outcome.step, outcome.signal_number))
    if outcome.signal_number:
        sys.exit(128 + outcome.signal_number)


def describe_outcome(config: Config, step: int, signal_number: int) -> str:
    """How the run ended, and what to run next."""
    folder = config.infrastructure.output_dir
    if signal_number:
        return f"stopped at step {step:,}; the same command resumes from {folder}"
    return f"done: step {step:,}; try it with: velocity sample --ckpt {quote(folder)}"


if __name__ == "__main__":
    main()
