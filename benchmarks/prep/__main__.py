"""Text to token shards: our whole pipeline, the same with tiktoken, tiktoken alone, datasets.map.

velocity            prep.run.prepare, one worker: parquet -> committed shards, sidecars, manifest
tiktoken_pipeline   the same, with tiktoken in place of our encoder
tiktoken            parquet -> encode_ordinary -> one .bin, and nothing else that ours does
datasets            load_dataset -> map with `tokenizers`, batched -> one .bin, as in nanoGPT

All read the same parquet file on the same number of threads, load their tokenizer within the
measured time, and must give the same tokens.
"""

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.measure import OURS, Engine, make_parser, print_result, run_script, say, take_turns
from benchmarks.prep.engines import (
    Tokens,
    start_datasets,
    start_tiktoken,
    start_tiktoken_pipeline,
    start_velocity,
)
from benchmarks.prep.texts import add_text_options, write_text

PACKAGES = ("fastokens", "tokenizers", "tiktoken", "datasets", "numpy", "pyarrow")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = make_parser("Text to token shards, beside tiktoken and datasets.map.")
    add_text_options(parser, megabytes=4.0)
    parser.add_argument("--threads", type=int, default=1, help="of every engine's tokenizer")
    return parser.parse_args()


def main() -> None:
    """Measure, compare the tokens, print the line."""
    options = parse_arguments()
    # Read by `tokenizers` at its first batch.
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    pa.set_cpu_count(options.threads)
    with tempfile.TemporaryDirectory(prefix="benchmark-prep-") as name:
        scratch = Path(name)
        text = write_text(scratch, options)
        say(f"{text.num_documents:,} documents, {text.num_bytes / 1e6:.1f} MB of text")
        engines = [
            Engine(OURS, (), lambda: start_velocity(text, scratch)),
            Engine(
                "tiktoken_pipeline", ("tiktoken",), lambda: start_tiktoken_pipeline(text, scratch)
            ),
            Engine("tiktoken", ("tiktoken",), lambda: start_tiktoken(text, scratch, options)),
            Engine("datasets", ("datasets",), lambda: start_datasets(text, scratch)),
        ]
        num_tokens: list[int] = []

        def check(outputs: Mapping[str, Tokens]) -> None:
            compare_tokens(outputs)
            num_tokens.append(len(outputs[OURS]))

        results = take_turns(engines, options, check)
    work = {
        "documents": text.num_documents,
        "text_bytes": text.num_bytes,
        "tokens": num_tokens[0],
        "passes_over_the_input": text.num_passes,
    }
    # A difference would have ended the run.
    checks = {"tokens_equal": True if len(results.rounds) > 1 else None}
    print_result("prep", options, work, results, checks, PACKAGES)


def compare_tokens(outputs: Mapping[str, Tokens]) -> None:
    """Raise ValueError with the first place where a peer's tokens differ from ours."""
    ours = outputs[OURS]
    for name, tokens in outputs.items():
        if np.array_equal(tokens, ours):
            continue
        shared = min(len(tokens), len(ours))
        different = np.flatnonzero(tokens[:shared] != ours[:shared])
        place = int(different[0]) if len(different) else shared
        raise ValueError(
            f"{name} made {len(tokens):,} tokens, {OURS} {len(ours):,}, and they differ from token "
            f"{place:,} on; one of them encodes wrongly, so no figures are given"
        )


if __name__ == "__main__":
    run_script(main)
