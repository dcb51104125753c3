"""`velocity quickstart`: the three commands, on the Python documentation of this machine.

    write_python_docs -> velocity prep -> torchrun -m train -> velocity sample

Each command is printed before it runs, in the words that the user would type.
"""

import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prep.python_docs import write_python_docs
from shards.reader import Shards, open_shards
from shards.screen.lines import put
from shards.screen.names import quote
from shards.screen.secrets import hide
from train.start.choose import suggest_command

PROMPT = "The list of"
# How far below the unigram entropy the validation loss must come to count as learning.
REQUIRED_NATS = 0.3


def run_quickstart(out: Path, overrides: Sequence[str] = ()) -> None:
    """Run the pipeline in `out`; ValueError if a command fails or the model did not learn.

    `overrides` are further settings of the run, as `section.key=value`.
    """
    text, shards = out / "python-docs.jsonl", out / "shards"
    checkpoints, logs = out / "checkpoints", out / "logs"
    out.mkdir(parents=True, exist_ok=True)
    if not text.exists():
        num_documents = write_python_docs(text)
        put(f"{text}: {num_documents} documents from Python's own documentation")
        put("")
    run_command(
        *("velocity", "prep", "--input", text, "--out", shards),
        *("--validation-fraction", "0.05"),
    )
    run_command(
        *("torchrun", "--nproc_per_node", "1", "-m", "train", "--config", "tiny"),
        f"data.shards={shards}",
        f"infrastructure.output_dir={checkpoints}",
        f"infrastructure.logging_dir={logs}",
        *overrides,
    )
    run_command(
        *("velocity", "sample", "--ckpt", checkpoints, "--prompt", PROMPT),
        *("--repetition-penalty", "1.2", "--seed", "1"),
    )
    entropy = measure_unigram_entropy(open_shards(shards))
    loss = read_validation_loss(logs / "metrics.jsonl")
    for line in describe_result(loss, entropy, checkpoints, shards):
        put(line)
    if not loss <= entropy - REQUIRED_NATS:
        raise ValueError(
            f"the validation loss {loss:.3f} is not {REQUIRED_NATS} below the unigram entropy "
            f"{entropy:.3f}: the model learned nothing; please report this with {logs}"
        )


def run_command(*words: str | Path, lines: Sequence[str] = ()) -> None:
    """Print a command and run it with this Python; ValueError if it fails.

    `lines` are its standard input, if there are any.
    """
    start_command(words, lines)
    put("")


def read_command(*words: str | Path) -> str:
    """The same, but its output is returned and not shown."""
    return start_command(words, captures=True)


def start_command(
    words: Sequence[str | Path], lines: Sequence[str] = (), captures: bool = False
) -> str:
    """Print a command and run it; its output, if that is captured."""
    command = [str(word) for word in words]
    typed = shlex.join(["printf", "%s\\n", *lines]) + " | " if lines else ""
    put(f"$ {typed}{hide(shlex.join(command))}", bold=True)
    module = {"velocity": "cli", "torchrun": "torch.distributed.run"}[command[0]]
    # The working folder is the user's: no module of theirs may stand in for one of ours.
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    process = subprocess.run(
        [sys.executable, "-m", module, *command[1:]],
        env=environment,
        text=True,
        encoding="utf-8",
        input="".join(f"{line}\n" for line in lines) if lines else None,
        stdout=subprocess.PIPE if captures else None,
    )
    if process.returncode:
        put("")
        raise ValueError(f"this command failed with exit code {process.returncode}")
    return process.stdout if captures else ""


def measure_unigram_entropy(shards: Shards) -> float:
    """The entropy of the train split's token frequencies, in nats.

    It is the loss of the best model that knows only how frequent each token is.
    """
    stream = shards.stream("train")
    counts = np.bincount(stream.read(0, stream.num_tokens), minlength=shards.manifest.vocab_size)
    shares = counts[counts > 0] / stream.num_tokens
    return float(-(shares * np.log(shares)).sum())


def read_validation_loss(metrics: Path) -> float:
    """The last validation loss in a run's log; NaN if there is none."""
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    losses = [record["validation_loss"] for record in records if "validation_loss" in record]
    return float(losses[-1]) if losses else math.nan


def describe_result(loss: float, entropy: float, checkpoints: Path, shards: Path) -> list[str]:
    """What was learned, and what to type next."""
    run, made = quote(checkpoints), quote(shards)
    return [
        f"validation loss        {loss:.3f} nats a token",
        f"unigram entropy        {entropy:.3f}, what knowing only the frequencies gives",
        f"                       {entropy - loss:+.3f} learned from the order of the words",
        "",
        "next:",
        f'  velocity sample --ckpt {run} --prompt "Your words"',
        f"  velocity shards info {made}",
        f"  velocity shards trace {made} --run {run} --step 1",
        "  velocity prep --input YOUR_TEXT.jsonl --text-column text --out shards/",
        f"  {suggest_command(Path('shards'))}",
    ]
