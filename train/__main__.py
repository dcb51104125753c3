"""The training command: parses its arguments, trains, and reports errors in one line.

torchrun --nproc_per_node 4 -m train [--config NAME|FILE] [section.key=value ...]
"""

import os
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C just ends the process, with no traceback, until there is a run that listens for it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# On a CPU, waiting threads should sleep: by default they spin, and next to one busy process the run
# takes ten times as long (docs/log.md). This must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# On a GPU, what small tensors leave can then be joined for a large one; otherwise a run near the
# limit may fail with memory free, but in pieces. A user's own choice stays, by the older name, too.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

# torch's own notes about each lost connection come with a page of C++ frames, on every rank; what
# happened is told in one line.
if "--debug" not in sys.argv:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from model.checkpoints.seal import CHAT_TEMPLATE
from shards.entry.failure import describe_error, prepare_screen, shorten
from shards.screen.lines import put, say
from shards.screen.names import quote
from train.config import Config
from train.ranks.ending import Ending
from train.ranks.launch import adopt_launcher
from train.ranks.stop import listen_for_stop
from train.reports.console import keep_standard_error
from train.settings import load_config
from train.start.arguments import parse_arguments
from train.start.choose import list_configs


def describe_training_error(error: Exception) -> str:
    """The error in words, with what to do in a run."""
    if isinstance(error, torch.OutOfMemoryError):
        error = ValueError(
            "the GPU's memory is full; set a smaller training.batch_size_per_device, or "
            "training.activation_checkpointing=full"
        )
    return shorten(describe_error(error))


def read_settings(words: list[str]) -> Config | None:
    """The run's settings; None if the named ones were only to be listed."""
    arguments = parse_arguments(words)
    if arguments.config != "list":
        return load_config(arguments.config, arguments.overrides)
    for line in list_configs():
        put(line)
    return None


@record
def main() -> None:
    """Run the command; train/ranks/exits.py has its exit codes."""
    keep_standard_error()
    prepare_screen(sys.argv)
    ending = Ending(describe_training_error, debug="--debug" in sys.argv)
    with ending.telling_alike():
        adopt_launcher(os.environ)
        config = read_settings(sys.argv[1:])
        sys.stdout.flush()  # What cannot be written must not fail after the exit code is chosen.
    if config is None:
        return
    with ending.telling():
        from train.loop import train

        with listen_for_stop(ending) as stop:
            outcome = train(config, stop, ending)
    if os.environ.get("RANK", "0") == "0":
        writes_chats = outcome.checkpoint and (outcome.checkpoint / CHAT_TEMPLATE).is_file()
        command = "chat" if writes_chats else "sample"
        say(describe_outcome(config, outcome.step, outcome.signal_number, command))
    if outcome.signal_number:
        sys.exit(128 + outcome.signal_number)


def describe_outcome(config: Config, step: int, signal_number: int, command: str) -> str:
    """How the run ended, and what to run next: a command of velocity for its model."""
    folder = config.infrastructure.output_dir
    if signal_number:
        return f"stopped at step {step:,}; the same command resumes from {folder}"
    return f"done: step {step:,}; try it with: velocity {command} --ckpt {quote(folder)}"


if __name__ == "__main__":
    main()
