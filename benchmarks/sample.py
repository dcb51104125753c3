"""Greedy text with a KV cache: our Generator against transformers' generate.

Both load one checkpoint folder with random weights, get the same prompts, of equal length, and
must write the same tokens. The time runs from the prompts to the last token, so it includes
reading the prompts; ours also includes tokenizing them and decoding the tokens, while transformers
goes from ids to ids.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import (
    OURS,
    Engine,
    Figures,
    Measured,
    make_parser,
    print_result,
    run_script,
    say,
    take_turns,
)
from model.checkpoints.folder import save_model
from model.checkpoints.seal import seal
from model.config import ModelConfig
from model.decode.generator import Generator
from model.decode.settings import Settings
from model.generate import load_generator
from prep.tokenizer.gpt2 import END_OF_TEXT, VOCAB_SIZE, build_gpt2_json
from tests.tiny import make_model

PACKAGES = ("torch", "transformers", "tokenizers", "numpy")
# Each is one token with the space before it.
WORDS = ("the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with", "be")
# Weights large enough that a random model does not repeat one token; the same gain as in the tests.
WEIGHT_GAIN = 1.6

# A row of ids for each prompt, starting with the prompt's own.
Rows = list[list[int]]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = make_parser("Greedy text with a KV cache, beside transformers' generate.")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--intermediate-size", type=int, default=2048)
    parser.add_argument("--prompt-tokens", type=int, default=32, help="of each prompt")
    parser.add_argument("--new-tokens", type=int, default=64, help="after each prompt")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4], help="prompts")
    parser.add_argument("--threads", type=int, help="of torch; else as many as it takes")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda in half precision")
    parser.add_argument("--seed", type=int, default=0, help="of weights and prompts")
    return parser.parse_args()


def main() -> None:
    """Measure at every batch size, compare the tokens, print the line."""
    options = parse_arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if options.threads:
        torch.set_num_threads(options.threads)
    config = make_model_config(options)
    with tempfile.TemporaryDirectory(prefix="benchmark-sample-") as name:
        folder = Path(name) / "checkpoint-0"
        save_model(folder, make_model(config, options.seed), build_gpt2_json())
        seal(folder)
        generator = load_generator(folder, options.device)
        dtype = generator.model.lm_head.weight.dtype
        say(f"{config.num_parameters():,} parameters in {dtype}")
        engines = [
            Engine(OURS, (), lambda: start_velocity(generator, options)),
            Engine(
                "transformers",
                ("transformers",),
                lambda: start_transformers(folder, generator, options),
            ),
        ]
        equal: list[bool] = []

        def check(outputs: Mapping[str, Rows]) -> None:
            equal.extend(outputs[name] == outputs[OURS] for name in outputs.keys() - {OURS})
            if not all(equal) and dtype == torch.float32:
                raise ValueError("transformers wrote other tokens, so no figures are given")

        results = take_turns(engines, options, check)
    work = {
        "num_parameters": config.num_parameters(),
        "dtype": str(dtype).removeprefix("torch."),
        "tokens_counted": "generated ones; the prompts' are read, not counted",
    }
    print_result(
        "sample", options, work, results, {"tokens_equal": all(equal) if equal else None}, PACKAGES
    )


def make_model_config(options: argparse.Namespace) -> ModelConfig:
    """The model that the options describe."""
    return ModelConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=options.intermediate_size,
        max_position_embeddings=options.prompt_tokens + options.new_tokens,
        initializer_range=WEIGHT_GAIN / options.hidden_size**0.5,
    )


def make_prompts(batch_size: int, options: argparse.Namespace) -> list[str]:
    """Different prompts of equal length; those of a small batch are also in a large one."""
    draw = random.Random(options.seed)
    return [
        "".join(f" {word}" for word in draw.choices(WORDS, k=options.prompt_tokens))
        for _ in range(batch_size)
    ]


def start_velocity(generator: Generator, options: argparse.Namespace) -> Callable[[], Measured]:
    """Our generator."""

    def write(batch_size: int) -> Rows:
        settings = Settings(
            do_sample=False, max_new_tokens=options.new_tokens, batch_size=batch_size
        )
        completions = generator.complete(make_prompts(batch_size, options), settings)
        assert all(text.num_prompt_tokens == options.prompt_tokens for text in completions)
        return [list(completion.tokens) for completion in completions]

    return partial(time_writing, write, options)


def start_transformers(
    folder: Path, generator: Generator, options: argparse.Namespace
) -> Callable[[], Measured]:
    """transformers' model from the same folder, on our device and in our dtype."""
    from transformers import AutoModelForCausalLM

    weight = generator.model.lm_head.weight
    llama: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=weight.dtype)
    llama.to(weight.device)
    prompts = make_prompts(max(options.batch_sizes), options)
    ids = [encoding.ids for encoding in generator.tokenizer.encode_batch(prompts)]

    def write(batch_size: int) -> Rows:
        tokens = torch.tensor(ids[:batch_size], device=weight.device)
        rows = llama.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=options.new_tokens,
            pad_token_id=END_OF_TEXT,
        )
        return [end_row(row, options.prompt_tokens) for row in rows.tolist()]

    return partial(time_writing, write, options)


def end_row(row: list[int], num_prompt_tokens: int) -> list[int]:
    """A row without the padding after its <|endoftext|>."""
    if END_OF_TEXT not in row[num_prompt_tokens:]:
        return row
    return row[: row.index(END_OF_TEXT, num_prompt_tokens) + 1]


def time_writing(write: Callable[[int], Rows], options: argparse.Namespace) -> Measured:
    """Write at each batch size; returns tokens generated per second, and the rows."""
    figures: Figures = {}
    written: Rows = []
    for batch_size in options.batch_sizes:
        started = time.perf_counter()
        rows = write(batch_size)
        seconds = time.perf_counter() - started
        num_new = sum(len(row) - options.prompt_tokens for row in rows)
        figures[f"tokens_per_second_at_batch_{batch_size}"] = num_new / seconds
        written += rows
    return Measured(figures, written)


if __name__ == "__main__":
    run_script(main)
