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
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from benchmarks.llama import Llama, find_llama
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
from model.config import Kept, ModelConfig
from model.decode.generator import Generator
from model.decode.settings import Settings
from model.export import gguf
from model.export.source import open_source
from model.generate import load_generator
from model.pages import Pages
from model.products import linear
from model.transformer import Transformer
from prep.tokenizer.gpt2 import END_OF_TEXT, VOCAB_SIZE, build_gpt2_json
from tests.tiny import make_model

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "gguf")
# Each is one token with the space before it.
WORDS = ("the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with", "be")
# Weights large enough that a random model does not repeat one token; the same gain as in the tests.
WEIGHT_GAIN = 1.6
# transformers' two kinds of cache that hold all tokens.
CACHES = {"transformers": None, "transformers_static": "static"}
# llama.cpp's engines, and what its file holds.
LLAMA = {"llama_cpp": "fp32", "llama_cpp_q8_0": "q8_0"}
READ_BYTES = 2**28
READ = "gigabytes_read_per_second"

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
    config = make_model_config(options)
    with tempfile.TemporaryDirectory(prefix="benchmark-sample-") as name:
        folder = Path(name) / "checkpoint-0"
        save_model(folder, make_model(config, options.seed), build_gpt2_json())
        seal(folder)
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


def list_engines(
    folder: Path, generator: Generator, options: argparse.Namespace
) -> Iterator[Engine]:
    """What takes turns: ours in every dtype, transformers' with each cache, llama.cpp's."""

    def start_kept(kept: Kept) -> Callable[[], Measured]:
        return start_velocity(load_generator(folder, options.device, dtype=kept), options)

    yield Engine("read", (), lambda: time_reading)
    yield Engine(OURS, (), partial(start_velocity, generator, options))
    for kept in options.dtypes:
        yield Engine(f"{OURS}_{kept}", (), partial(start_kept, kept))
    for name, kind in CACHES.items():
        start = partial(start_transformers, folder, generator, options, kind)
        yield Engine(name, ("transformers",), start)
    packages = ("gguf",) if options.llama_python else ("gguf", "llama-cpp-python")
    for name, held in LLAMA.items() if options.device == "cpu" else ():
        yield Engine(name, packages, partial(start_llama, folder, generator, options, held))


def make_prompts(batch_size: int, options: argparse.Namespace) -> list[str]:
    """Different prompts; those of a small batch are also in a large one."""
    draw, shortest = random.Random(options.seed), max(1, options.prompt_tokens // 4)
    lengths = [options.prompt_tokens] * batch_size
    if options.unequal:
        # The first is the longest, so that the others are padded to it.
        lengths[1:] = [draw.randint(shortest, options.prompt_tokens) for _ in lengths[1:]]
    return ["".join(f" {word}" for word in draw.choices(WORDS, k=k)) for k in lengths]


def start_velocity(generator: Generator, options: argparse.Namespace) -> Callable[[], Measured]:
    """Our generator."""

    def write(batch_size: int, num_new: int) -> Rows:
        settings = Settings(do_sample=False, max_new_tokens=num_new, batch_size=batch_size)
        completions = generator.complete(make_prompts(batch_size, options), settings)
        return [list(text.tokens[text.num_prompt_tokens :]) for text in completions]

    sizes, num_bytes = options.batch_sizes, count_bytes(generator.model)
    return partial(time_writing, write, sizes, options.new_tokens, num_bytes)


def count_bytes(model: Transformer) -> int:
    """The bytes of a model's weights; a head that is the embedding counts once."""
    tensors = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


def start_transformers(
    folder: Path, generator: Generator, options: argparse.Namespace, cache: str | None
) -> Callable[[], Measured]:
    """transformers' model from the same folder, on our device and in our dtype."""
    from transformers import AutoModelForCausalLM

    weight = generator.model.lm_head.weight
    llama: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=weight.dtype)
    llama.to(weight.device)

    def write(batch_size: int, num_new: int) -> Rows:
        encodings = generator.tokenizer.encode_batch(make_prompts(batch_size, options))
        longest = max(len(encoding.ids) for encoding in encodings)
        for encoding in encodings:
            encoding.pad(longest, direction="left", pad_id=END_OF_TEXT)
        rows = llama.generate(
            torch.tensor([encoding.ids for encoding in encodings], device=weight.device),
            attention_mask=torch.tensor(
                [encoding.attention_mask for encoding in encodings], device=weight.device
            ),
            do_sample=False,
            max_new_tokens=num_new,
            pad_token_id=END_OF_TEXT,
            cache_implementation=cache,
        )
        return [end_row(row[longest:]) for row in rows.tolist()]

    num_bytes = sum(p.nbytes for p in llama.parameters())
    return partial(time_writing, write, options.batch_sizes, options.new_tokens, num_bytes)


def start_llama(
    folder: Path, generator: Generator, options: argparse.Namespace, dtype: str
) -> Callable[[], Measured]:
    """llama.cpp on a file of the checkpoint's, with as many threads as torch."""
    path = gguf.write(open_source(folder), folder.parent, f"{dtype}.gguf", dtype)
    llama = Llama(options.llama_python or Path(sys.executable), path, torch.get_num_threads())

    def write(batch_size: int, num_new: int) -> Rows:
        encodings = generator.tokenizer.encode_batch(make_prompts(batch_size, options))
        return [end_row(llama.write(encoding.ids, num_new)) for encoding in encodings]

    return partial(time_writing, write, [1], options.new_tokens, count_gguf_bytes(path))


def count_gguf_bytes(path: Path) -> int:
    """The bytes of a GGUF file's weights."""
    from gguf import GGUFReader

    return sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)


def end_row(row: list[int]) -> list[int]:
    """New tokens without the padding after <|endoftext|>."""
    return row[: row.index(END_OF_TEXT) + 1] if END_OF_TEXT in row else row


def time_writing(
    write: Callable[[int, int], Rows], batch_sizes: Sequence[int], num_new: int, num_bytes: int
) -> Measured:
    """Write at each batch size; returns figures, and the rows of new tokens.

    The bytes of the weights are read once for each step of all rows.
    """
    figures: Figures = {}
    written: Rows = []
    for batch_size in batch_sizes:
        started = time.perf_counter()
        write(batch_size, 1)
        figures[f"first_text_per_second_at_batch_{batch_size}"] = 1 / since(started)
        started = time.perf_counter()
        rows = write(batch_size, num_new)
        seconds = since(started)
        figures[f"tokens_per_second_at_batch_{batch_size}"] = sum(map(len, rows)) / seconds
        if batch_size == 1:
            figures[READ] = len(rows[0]) * num_bytes / seconds / 1e9
        written += rows
    return Measured(figures, written)


def count_equal(mine: Sequence[int], other: Sequence[int]) -> int:
    """With how many equal tokens both begin."""
    pairs = zip(mine, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def since(started: float) -> float:
    """Seconds from then to now."""
    return time.perf_counter() - started


def time_reading() -> Measured:
    """How fast numbers are read: as a sum and in a product with a vector, the faster of both.

    From huge pages, where there are some, as our weights are.
    """
    matrix = Pages().empty((READ_BYTES // 4 // 4096, 4096), torch.float32).fill_(1)
    vector, seconds = torch.ones(1, 4096), []
    with torch.inference_mode():
        for read in (matrix.sum, lambda: linear(vector, matrix)) * 3:
            started = time.perf_counter()
            read()
            seconds.append(since(started))
    return Measured({READ: READ_BYTES / min(seconds) / 1e9}, None)


if __name__ == "__main__":
    run_script(main)
