"""A context made four times as long: the loss by position, before training on and after it.

A small model is trained with a context of 128 tokens on long documents. `velocity convert` makes
its context 512, in each way, and each is trained on (`model.start`) for a tenth of the tokens, in
windows of 512. All are then asked the same: the loss at each position of held-out windows of 512.

Beside them stand the model whose config says 512 and nothing else, before and after the same
training, and the model as it was, which reads each token with up to 127 before it: how hard the
tokens are at each position. What is in WORK is not made again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.learn.sets import truncate_gpt2
from benchmarks.measure import Json, print_line, run_script, say
from model.checkpoints.folder import load_model
from model.checkpoints.seal import CONFIG, is_sealed, seal
from model.convert.longer import lengthen
from model.convert.options import Longer, Stretch
from model.transformer import Transformer
from shards.disk.layout import MANIFEST, TOKENIZER
from shards.reader import open_shards

SHORT, LONG = 128, 512
# Unchanged: positions as they were, and a config that says 512.
Way = Literal["unchanged"] | Stretch
WAYS: tuple[Way, ...] = ("unchanged", "theta", "yarn", "llama3", "linear")
# Positions that one number stands for.
BUCKET = 32
# Of a document, in characters: longer than four windows of 512.
MIN_CHARS = 8000
VOCAB_SIZE = 2048
STEP_TOKENS = 8192
MODEL = {
    "model.hidden_size": 96,
    "model.num_hidden_layers": 3,
    "model.num_attention_heads": 3,
    "model.intermediate_size": 256,
    "model.init": "depth_scaled",
    "model.max_position_embeddings": SHORT,
}
TRAINING = {
    "training.precision": "fp32",
    "training.activation_checkpointing": "none",
    "training.optimizer": "muon",
    "training.schedule": "linear_to_zero",
    "training.global_batch_tokens": STEP_TOKENS,
    "training.logging_steps": 20,
    "training.eval_windows": 64,
    "training.save_steps": 10_000,
}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="A context made four times as long: loss by position, before and after.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--work", type=Path, required=True, help="where everything is made")
    parser.add_argument("--input", type=Path, nargs="*", default=[], help="files of text")
    parser.add_argument("--text-column", default="text", help="of parquet and JSON")
    parser.add_argument("--max-documents", type=int, default=4000, help="that are prepared")
    parser.add_argument("--steps", type=int, default=500, help="with the short context")
    parser.add_argument("--further-steps", type=int, default=50, help="with the long one")
    parser.add_argument("--rate", type=float, default=8e-3, help="the learning rate at first")
    parser.add_argument("--further-rate", type=float, default=2e-3, help="and with the long one")
    parser.add_argument("--windows", type=int, default=512, help="held-out ones, of 512 tokens")
    return parser.parse_args()


def main() -> None:
    """Make what is missing, measure, print the line."""
    options = parse_arguments()
    torch.set_grad_enabled(False)
    prepare(options)
    base = train(options, "short", SHORT, options.steps, options.rate)
    found: Json = {}
    windows = read_windows(options.work / "shards", options.windows)
    for way in WAYS:
        start = convert(base, options.work / way, way)
        name, steps = f"{way}-further", options.further_steps
        further = train(options, name, LONG, steps, options.further_rate, start)
        found[way] = {"before": measure(start, windows), "after": measure(further, windows)}
        say(f"{way}: {json.dumps(found[way])}")
    found = {"short": measure_short(base, windows), "ways": found}
    work = {
        "parameters": load_model(base).config.num_parameters(),
        "tokens": {
            "short": options.steps * STEP_TOKENS,
            "long": options.further_steps * STEP_TOKENS,
        },
        "contexts": [SHORT, LONG],
        "positions_per_bucket": BUCKET,
        "documents": describe_documents(options.work / "shards"),
    }
    print_line("quality.longer", options, {"work": work, **found}, ("torch",))


def run(*words: object) -> None:
    """Run a command of ours; what it prints goes to standard error. ValueError if it fails."""
    command = [sys.executable, "-m", *map(str, words)]
    process = subprocess.run(command, stdout=sys.stderr, env=os.environ | {"PYTHONSAFEPATH": "1"})
    if process.returncode:
        raise ValueError(f"this command failed with exit code {process.returncode}: {command[2:]}")


def prepare(options: argparse.Namespace) -> None:
    """The set: long documents alone, with a tokenizer that is no larger than the model."""
    out, tokenizer = options.work / "shards", options.work / "tokenizer"
    if (out / MANIFEST).exists():
        return
    tokenizer.mkdir(parents=True, exist_ok=True)
    (tokenizer / TOKENIZER).write_text(truncate_gpt2(VOCAB_SIZE), encoding="utf-8")
    inputs = [word for path in options.input for word in ("--input", path)]
    limits = ["--min-chars", MIN_CHARS, "--max-documents", options.max_documents]
    column = ["--text-column", options.text_column, "--validation-fraction", "0.04"]
    run("cli", "prep", *inputs, *column, *limits, "--tokenizer", tokenizer, "--out", out)


def train(
    options: argparse.Namespace,
    name: str,
    length: int,
    steps: int,
    rate: float,
    start: Path | None = None,
) -> Path:
    """The last checkpoint of a run with windows of `length` tokens, from `start` or anew."""
    out = options.work / "runs" / name
    last = out / f"checkpoint-{steps}"
    if is_sealed(last):
        return last
    settings = {
        **(MODEL if start is None else {"model.start": start}),
        **TRAINING,
        "data.shards": options.work / "shards",
        "data.max_seq_length": length,
        "training.batch_size_per_device": STEP_TOKENS // length,
        "training.learning_rate": rate,
        "training.muon_learning_rate": rate,
        "training.warmup_steps": steps // 20,
        "training.num_training_steps": steps,
        "training.eval_steps": steps,
        "infrastructure.output_dir": out,
        "infrastructure.logging_dir": options.work / "logs" / name,
    }
    run("train", *(f"{key}={value}" for key, value in settings.items()))
    return last


def convert(base: Path, out: Path, way: Way) -> Path:
    """The checkpoint with a context of 512, in one way."""
    if is_sealed(out):
        return out
    if way != "unchanged":
        lengthen(base, out, Longer(LONG, way))
        return out
    # What `velocity convert` does not make, as it does not work: the config alone.
    lengthen(base, out, Longer(LONG))
    (out / "checksums.json").unlink()
    values = json.loads((base / CONFIG).read_text()) | {"max_position_embeddings": LONG}
    (out / CONFIG).write_text(json.dumps(values, indent=2))
    seal(out)
    return out


def read_windows(shards: Path, count: int) -> Tensor:
    """Held-out windows (count, 513), from the beginnings of long documents' pieces."""
    stream = open_shards(shards).stream("validation")
    most = (stream.num_tokens - 1) // LONG
    if most < count:
        raise ValueError(f"{shards}: validation has {most} windows; expected {count} or more")
    rows = [stream.read(number * LONG, LONG + 1).astype("int64") for number in range(count)]
    return torch.stack([torch.from_numpy(row) for row in rows])


def measure(folder: Path, windows: Tensor) -> Json:
    """The loss of a checkpoint by position, in nats a token, and its standard error by window."""
    return summarize(find_losses(load_model(folder).eval(), windows))


def measure_short(folder: Path, windows: Tensor) -> Json:
    """The same for a model that reads 128 tokens: with the last 96 to 127 before each at least.

    It tells how hard the tokens at each position are.
    """
    model, losses = load_model(folder).eval(), []
    for stop in range(BUCKET, LONG + 1, BUCKET):
        part = windows[:, max(stop - SHORT, 0) : stop + 1]
        losses.append(find_losses(model, part)[:, -BUCKET:])
    return summarize(torch.cat(losses, 1))


def summarize(losses: Tensor) -> Json:
    """The losses (B, T) of windows by position."""
    parts = losses.view(len(losses), -1, BUCKET).mean(2)
    errors = parts.std(0) / len(losses) ** 0.5
    return {
        "loss_by_position": [round(loss, 4) for loss in parts.mean(0).tolist()],
        "standard_error": round(float(errors.mean()), 4),
    }


def find_losses(model: Transformer, windows: Tensor) -> Tensor:
    """The loss at each position of windows (B, T + 1): (B, T)."""
    rows = []
    for part in windows.split(32):
        logits = model(part[:, :-1])
        rows.append(cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="none"))
    return torch.cat(rows)


def describe_documents(shards: Path) -> Json:
    """How long the documents are."""
    manifest = open_shards(shards).manifest
    documents = sum(shard.num_documents for shard in manifest.shards)
    tokens = sum(shard.num_tokens for shard in manifest.shards)
    return {"number": documents, "mean_tokens": round(tokens / documents)}


if __name__ == "__main__":
    run_script(main)
