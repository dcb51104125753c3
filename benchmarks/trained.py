"""A small trained model for `quality` and `sample.lookup`, made from your own text.

    TEXT, and source code -> velocity tokenizer train -> velocity prep
        -> torchrun -m train

Random weights say nothing about quality. This model has read both prose and code, on one thread of
a CPU; it is far smaller and less trained than what people use. Each command is printed before it
runs, and the same line again goes on where it stopped.
"""

import argparse
import json
import sysconfig
from pathlib import Path

from benchmarks.measure import run_script
from prep.python_docs import find_modules, name_module
from prep.quickstart import run_command
from shards.disk.durable import write_file

# A part of the set that no step reads.
VALIDATION_FRACTION = "0.02"
CODE_FILE = "code.jsonl"
CONTEXT = 512
SETTINGS = {
    "model.hidden_size": 256,
    "model.num_hidden_layers": 4,
    "model.num_attention_heads": 4,
    "model.intermediate_size": 704,
    "model.max_position_embeddings": CONTEXT,
    "data.max_seq_length": CONTEXT,
    "training.batch_size_per_device": 1,
    "training.learning_rate": 2e-3,
    "training.min_learning_rate": 2e-4,
    "training.warmup_steps": 50,
    "training.save_steps": 100,
    "training.eval_steps": 250,
    "training.eval_windows": 64,
}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="A small trained model: text and Python's source, a tokenizer, a set, a run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--input", type=Path, nargs="+", required=True, help="text, as for velocity prep"
    )
    parser.add_argument("--text-column", default="content", help="the column that holds the text")
    library = Path(sysconfig.get_path("stdlib"))
    parser.add_argument("--code", type=Path, default=library, help="a folder of .py files")
    parser.add_argument("--out", type=Path, required=True, help="a folder for all that is made")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=3000, help="of 512 tokens each")
    return parser.parse_args()


def main() -> None:
    """Make the documents, the tokenizer, the set and the checkpoints, each unless it is there."""
    options = parse_arguments()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    code, tokenizer, shards = out / CODE_FILE, out / "tokenizer", out / "shards"
    if not code.exists():
        write_file(code, write_code(options.code, options.text_column))
    sources: list[str | Path] = ["--text-column", options.text_column]
    for path in (*options.input, code):
        sources += ["--input", path]
    if not tokenizer.exists():
        size = str(options.vocab_size)
        run_command(
            "velocity", "tokenizer", "train", *sources, "--vocab-size", size, "--out", tokenizer
        )
    run_command(
        *("velocity", "prep", *sources, "--tokenizer", tokenizer, "--out", shards),
        *("--validation-fraction", VALIDATION_FRACTION),
    )
    steps = {
        "training.num_training_steps": options.steps,
        "training.cycle_steps": max(1, options.steps - int(SETTINGS["training.warmup_steps"])),
        "data.shards": shards,
        "infrastructure.output_dir": out / "checkpoints",
    }
    run_command(
        *("torchrun", "--nproc_per_node", "1", "-m", "train", "--config", "tiny"),
        *(f"{name}={value}" for name, value in (SETTINGS | steps).items()),
    )


def write_code(folder: Path, column: str) -> str:
    """The source files below a folder as JSON lines."""
    lines = []
    for path in find_modules(folder):
        text = path.read_text(encoding="utf-8", errors="replace")
        lines.append(json.dumps({column: text, "url": name_module(path.relative_to(folder))}))
    return "".join(line + "\n" for line in lines)


if __name__ == "__main__":
    run_script(main)
