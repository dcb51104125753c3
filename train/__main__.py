"""The training command: parses its arguments, trains, and reports errors in one line.

torchrun --nproc_per_node 4 -m train [--config NAME|FILE] [section.key=value ...]
"""

import argparse
import os
import sys
from typing import NoReturn

# On a CPU, waiting threads should sleep: by default they spin, and next to one busy process the run
# takes ten times as long (docs/log.md). This must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from train.config import Config
from train.settings import load_config
from train.start.arguments import parse_arguments
from train.start.choose import list_configs


def load_settings(arguments: argparse.Namespace) -> Config:
    """The settings; on an error, exits with one line, printed by the first rank only."""
    try:
        return load_config(arguments.config, arguments.overrides)
    except (ValueError, OSError) as error:
        if arguments.debug:
            raise
        exit_on_words(error)


def exit_on_words(error: Exception) -> NoReturn:
    """End for what is wrong with the command's words, which every rank has: the first one tells."""
    sys.exit(describe_error(error) if os.environ.get("RANK", "0") == "0" else 1)


def describe_error(error: Exception) -> str:
    """The error in one line, with its rank if that is not the first."""
    rank = int(os.environ.get("RANK", "0"))
    if isinstance(error, torch.OutOfMemoryError):
        error = ValueError(
            "the GPU's memory is full; set a smaller training.batch_size_per_device (and more "
            "training.gradient_accumulation_steps), or training.gradient_checkpointing=true"
        )
    return f"velocity: {f'rank {rank}: ' if rank else ''}{error}"


@record
def main() -> None:
    """Run the command; exits with 128 + the signal's number if a signal ended the run."""
    try:
        arguments = parse_arguments(sys.argv[1:])
    except ValueError as error:
        exit_on_words(error)
    if arguments.config == "list":
        print("\n".join(list_configs()))
        return
    config = load_settings(arguments)
    from train.loop import train

    try:
        outcome = train(config)
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        if arguments.debug:
            raise
        sys.exit(describe_error(error))
    if os.environ.get("RANK", "0") == "0":
        print(describe_outcome(config, outcome.step, outcome.signal_number), file=sys.stderr)
    if outcome.signal_number:
        sys.exit(128 + outcome.signal_number)


def describe_outcome(config: Config, step: int, signal_number: int) -> str:
    """How the run ended, and what to run next."""
    folder = config.infrastructure.output_dir
    if signal_number:
        return f"stopped at step {step:,}; the same command resumes from {folder}"
    return f"done: step {step:,}; try it with: velocity sample --ckpt {folder}"


if __name__ == "__main__":
    main()
