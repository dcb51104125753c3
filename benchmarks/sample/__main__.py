"""Greedy text with a KV cache: our Generator against transformers' generate and llama.cpp.

All load one checkpoint folder with random weights, get the same prompts, of equal length unless
`--unequal`, and in fp32 must write the same tokens. The time runs from the prompts to the last
token, so it includes reading the prompts; ours also includes tokenizing them and decoding the
tokens, while transformers and llama.cpp go from ids to ids. llama.cpp writes one text, from the
checkpoint as a GGUF file, and may round otherwise: with how many of our tokens it begins is told.
`read` measures how fast memory is read meanwhile.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.measure import (
    OURS,
    count_equal,
    make_parser,
    print_result,
    run_script,
    say,
    take_turns,
)
from benchmarks.models import add_size_options, make_model_config, write_checkpoint
from benchmarks.sample.engines import CACHES, Rows, list_engines
from benchmarks.sample.llama import find_llama
from model.generate import load_generator

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "gguf")
# Weights large enough that a random model does not repeat one token; the same gain as in the tests.
WEIGHT_GAIN = 1.6


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = make_parser("Greedy text with a KV cache, beside transformers' generate.")
    add_size_options(parser)
    parser.add_argument("--prompt-tokens", type=int, default=32, help="of each prompt")
    parser.add_argument("--new-tokens", type=int, default=64, help="after each prompt")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16], help="prompts")
    parser.add_argument("--unequal", action="store_true", help="prompts: from a quarter to all")
    parser.add_argument("--dtypes", nargs="*", default=["bf16", "int8"], help="of ours, too")
    parser.add_argument("--threads", type=int, help="of torch; else as many as it takes")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda in half precision")
    parser.add_argument(
        "--llama-python", type=Path, help="that has llama-cpp-python, if not this one"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and prompts")
    return parser.parse_args()


def main() -> None:
    """Measure at every batch size, compare the tokens, print the line."""
    options = parse_arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if options.threads:
        torch.set_num_threads(options.threads)
    config = make_model_config(
        options,
        max_position_embeddings=options.prompt_tokens + options.new_tokens,
        initializer_range=WEIGHT_GAIN / options.hidden_size**0.5,
    )
    with tempfile.TemporaryDirectory(prefix="benchmark-sample-") as name:
        folder = write_checkpoint(Path(name) / "checkpoint-0", config, options.seed)
        generator = load_generator(folder, options.device)
        dtype = generator.model.lm_head.weight.dtype
        step = generator.predictor.step
        say(f"{config.num_parameters():,} parameters in {dtype}")
        equal: list[bool] = []
        alike: list[int] = []

        def check(outputs: Mapping[str, Rows]) -> None:
            equal.extend(outputs[name] == outputs[OURS] for name in outputs.keys() & CACHES.keys())
            if "llama_cpp" in outputs:
                alike.append(count_equal(outputs[OURS][0], outputs["llama_cpp"][0]))
            if not all(equal) and dtype == torch.float32:
                raise ValueError("transformers wrote other tokens, so no figures are given")

        results = take_turns([*list_engines(folder, generator, options)], options, check)
    work = {
        "num_parameters": config.num_parameters(),
        "dtype": str(dtype).removeprefix("torch."),
        "tokens_in_a_step_of_c": 0 if step is None else step.max_tokens,
        "tokens_counted": "generated ones; the prompts' are read, not counted",
        "llama_cpp_python": find_llama(options.llama_python or Path(sys.executable)),
    }
    checks = {
        "tokens_equal": all(equal) if equal else None,
        "first_tokens_equal_to_llama_cpp": min(alike) if alike else None,
    }
    print_result("sample", options, work, results, checks, PACKAGES)


if __name__ == "__main__":
    run_script(main)
